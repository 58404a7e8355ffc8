"""What constructors of layers that torch.nn does not have refuse, and what tools of torch call them with."""

import inspect

import numpy
import pytest
import torch

import normreg
from normreg import functional

PROBABILITIES = {
    "DropPath": (normreg.DropPath, "drop_prob"),
    "DropPathAdd": (normreg.DropPathAdd, "drop_prob"),
    "DropoutAdd": (normreg.DropoutAdd, "p"),
    "BiasActDropout": (lambda p: normreg.BiasActDropout(4, p=p), "p"),
    "DropoutAddLayerNorm": (lambda p: normreg.DropoutAddLayerNorm(4, p=p), "p"),
    "DropoutAddRMSNorm": (lambda p: normreg.DropoutAddRMSNorm(4, p=p), "p"),
}
every_probability = pytest.mark.parametrize(("make", "name"), PROBABILITIES.values(), ids=PROBABILITIES)


@every_probability
@pytest.mark.parametrize(
    "p", [2.0, -0.1, float("nan"), float("inf"), "0.1", None, [0.1], torch.tensor(2.0)], ids=str
)
def test_bad_probabilities_are_refused_at_construction(make, name, p):
    with pytest.raises(
        ValueError, match=rf"expected {name} to be a number between 0 and 1, got .*: pass a probability"
    ):
        make(p)


@every_probability
@pytest.mark.parametrize(
    "p", [0, 1, True, 0.5, numpy.float32(0.5), numpy.float64(0.5), torch.tensor(0.5)], ids=str
)
def test_probabilities_that_torch_and_timm_take(device, make, name, p):
    layer = make(p).to(device)
    assert getattr(layer, name) is p
    x = torch.ones(6, 4, device=device)
    residual = [x] if "residual" in inspect.signature(layer.forward).parameters else []
    for training in (True, False):
        assert layer.train(training)(x, *residual).shape == x.shape


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "torch"])
def test_bad_probabilities_of_later(device, monkeypatch, kernel):
    """The call names the number that was assigned, not 1 minus it."""
    if not kernel:
        monkeypatch.setattr(functional.dispatch.cpu, "KERNELS", None)
        device = torch.device("cpu")
    x = torch.ones(6, 4, device=device)
    for layer, inputs in ((normreg.DropPath(0.5), (x,)), (normreg.DropPathAdd(0.5), (x, x))):
        layer.drop_prob = 2.0
        with pytest.raises(ValueError, match=r"expected drop_prob to be between 0 and 1, got 2\.0"):
            layer(*inputs)


OTHER_NAMES = {
    "LayerNorm2d(7, elementwise_affine=False)": "elementwise_affine=False: pass affine=False",
    "LayerNorm1d(normalized_shape=7)": "pass num_channels",
    "LayerNorm3d(num_features=7)": "pass num_channels=7",
    "RMSNorm2d(channels=7)": "pass num_channels=7",
    "BatchNormAct2d(7, inplace=True)": "inplace=True: leave it out",
    "BatchNormAct1d(7, act_layer=torch.nn.ReLU)": "pass act=, the name",
    "BatchNormAct3d(7, apply_act=False)": "pass act=None",
    "SyncBatchNormAct(7, activation='relu')": "pass act=, the name",
    "GroupNormAct(2, 4, group_size=2)": "pass num_groups",
    "GroupNormAct(num_channels=4, num_groups=2, act_layer=torch.nn.ReLU)": "pass act=, the name",
    "GroupNormAct(2, 4, apply_act=False)": "pass act=None",
    "GroupNormAct(2, 4, drop_layer=None)": "put the layer behind this one",
    "DropPath(p=0.1)": r"p=0\.1: pass drop_prob=0\.1",
    "DropPath(inplace=True)": "leave it out",
    "DropPathAdd(p=0.1)": r"pass drop_prob=0\.1",
    "DropoutAdd(drop_prob=0.1)": r"pass p=0\.1",
    "DropoutAdd(inplace=True)": "leave it out",
    "DropoutAddLayerNorm(7, dropout=0.1)": r"pass p=0\.1",
    "DropoutAddLayerNorm(7, affine=False)": "pass elementwise_affine=False",
    "DropoutAddRMSNorm(7, dropout_p=0.1)": r"pass p=0\.1",
    "DropoutAddRMSNorm(7, bias=False)": "an RMSNorm has none",
    "RMSNormGated(8, activation='swish')": "pass act=, silu for swish",
    "RMSNormGated(8, n_groups=2)": "pass group_size=hidden_size // 2",
    "RMSNormGated(normalized_shape=8)": "pass hidden_size, the size",
    "BiasActDropout(7, bias=True)": "leave it out, or call normreg.functional",
    "BiasActDropout(7, dropout=0.1)": r"pass p=0\.1",
}


@pytest.mark.parametrize(("call", "message"), OTHER_NAMES.items(), ids=OTHER_NAMES)
def test_names_of_other_layers(call, message):
    name = call.partition("(")[0]
    with pytest.raises(TypeError, match=rf"^{name} has no argument .*{message}"):
        eval(f"normreg.{call}")


ARGUMENTS = dict.fromkeys(("GroupNorm", "GroupNormAct"), (2, 4))
LAYERS = [
    name for name in normreg.nn.__all__ if "device" in inspect.signature(getattr(normreg, name)).parameters
]


def test_the_layers_with_a_device():
    """All that have parameters: torch's dropouts take none either."""
    assert {*normreg.nn.__all__} - {*LAYERS} == {
        name for name in normreg.nn.__all__ if not [*of(name).parameters(), *of(name).buffers()]
    }


def parameters_of(name):
    """The option by which a layer has parameters that has none by default."""
    if "InstanceNorm" in name:
        return {"affine": True}
    return {"elementwise_affine": True} if name.startswith("Ada") else {}


def of(name, **options):
    options |= parameters_of(name)
    arguments = {**dict.fromkeys(LAYERS, (4,)), **ARGUMENTS}.get(name, ())
    return getattr(normreg, name)(*arguments, **options)


@pytest.mark.parametrize("name", LAYERS)
def test_initialisation_is_skipped(name):
    """By torch's tool, which makes the layer on meta and gives it memory elsewhere."""
    cls = getattr(normreg, name)
    layer = torch.nn.utils.skip_init(cls, *ARGUMENTS.get(name, (4,)), **parameters_of(name))
    assert {t.device.type for t in (*layer.parameters(), *layer.buffers())} == {"cpu"}
    assert [*layer.state_dict()] == [*of(name).state_dict()]
    assert {t.device.type for t in of(name, device="meta").parameters()} == {"meta"}


BAD_RESIDUALS = {
    "a number": (lambda x: 3.0, "got 3.0|got float"),
    "an int": (lambda x: 3, "got 3|got int"),
    "a str": (lambda x: "x", "got 'x'|got str"),
    "a list": (lambda x: [1.0], r"got \[1.0\]|got list"),
    "integers": (lambda x: torch.ones_like(x, dtype=torch.int64), "floating-point dtype, got torch.int64"),
    "bool": (lambda x: x > 0, "floating-point dtype, got torch.bool"),
    "complex": (lambda x: torch.complex(x, x), "floating-point dtype, got torch.complex64"),
}
CALLS = {
    "batch_norm_act": lambda x, r: functional.batch_norm_act(x, **running(x), training=True, residual=r),
    "batch_norm_act in evaluation": lambda x, r: functional.batch_norm_act(x, **running(x), residual=r),
    "dropout_add": functional.dropout_add,
    "drop_path_add": lambda x, r: functional.drop_path_add(x, r, 0.5, True),
    "dropout_add_layer_norm": lambda x, r: functional.dropout_add_layer_norm(x, r, (4,)),
    "dropout_add_rms_norm": lambda x, r: functional.dropout_add_rms_norm(x, r, (4,)),
}
LAST = {}
CANNOT_BE_ADDED = {
    "another shape": (lambda x: x[:, :3], r"shape \[6, 4\], or one that is broadcast to it, got \[6, 3\]"),
    "another device": (
        lambda x: torch.randn(6, 4, device="meta"),
        "device, (cpu|cuda:0), got one on meta: move it",
    ),
}


def running(x):
    LAST["running"] = [torch.zeros(4, device=x.device), torch.ones(4, device=x.device)]
    return dict(zip(("running_mean", "running_var"), LAST["running"], strict=True))


@pytest.mark.parametrize(("make", "message"), BAD_RESIDUALS.values(), ids=BAD_RESIDUALS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_bad_residuals(device, call, make, message):
    x = torch.randn(6, 4, device=device)
    LAST.clear()
    with pytest.raises(ValueError, match=message):
        call(x, make(x))
    for mean_or_var, value in zip(LAST.get("running", ()), (0, 1)):
        assert (mean_or_var == value).all()


@pytest.mark.parametrize(("make", "message"), CANNOT_BE_ADDED.values(), ids=CANNOT_BE_ADDED)
@pytest.mark.parametrize("training", [True, False])
def test_what_cannot_be_added_moves_no_statistics(device, training, make, message):
    x = torch.randn(6, 4, device=device)
    with pytest.raises(ValueError, match=message):
        functional.batch_norm_act(x, **running(x), training=training, residual=make(x))
    assert not LAST["running"][0].any()


def test_a_slope_that_is_no_number_moves_no_statistics(device):
    x = torch.randn(6, 4, device=device)
    with pytest.raises(TypeError, match="expected negative_slope to be a number, got 'a'"):
        functional.batch_norm_act(x, **running(x), training=True, act="leaky_relu", negative_slope="a")
    assert not LAST["running"][0].any()
    for layer in (normreg.BatchNormAct1d, normreg.BiasActDropout, normreg.SyncBatchNormAct):
        with pytest.raises(TypeError, match="expected negative_slope to be a number, got None"):
            layer(4, act="leaky_relu", negative_slope=None)


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [((4,), "expand it first"), ((6, 1), "expand it first"), ((2, 4), "pass one of that")],
)
def test_only_what_expands_is_to_be_expanded(device, shape, remedy):
    with pytest.raises(ValueError, match=remedy):
        functional.dropout_add(torch.ones(6, 4, device=device), torch.ones(shape, device=device))
