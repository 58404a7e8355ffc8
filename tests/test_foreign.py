"""Layers of other libraries, by stand-ins: classes of the same import path, attributes and formula."""

import copy
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from duplicates import saved_and_loaded
from reference import GRADIENT_UNITS, assert_accurate
from torch import nn

import normreg
from normreg.functional import dispatch
from normreg.models import registry


def at(path):
    """A class decorator: as if the class were at that import path."""

    def place(cls):
        cls.__module__, _, cls.__qualname__ = path.rpartition(".")
        if "forward" in vars(cls):
            cls.forward.__module__ = cls.__module__
        return cls

    return place


def wide(x):
    """What the libraries call `x.float()`, here of float64 without rounding: it is the reference."""
    return x if x.dtype == torch.float64 else x.float()


def root_mean_square(x, eps):
    return x.square().mean(-1, keepdim=True).add(eps).rsqrt()


@at("transformers.models.llama.modeling_llama.LlamaRMSNorm")
class LlamaRMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(size)), 1e-6

    def forward(self, hidden_states):
        x = wide(hidden_states)
        return self.weight * (x * root_mean_square(x, self.variance_epsilon)).to(hidden_states.dtype)


@at("transformers.models.olmo2.modeling_olmo2.Olmo2RMSNorm")
class Olmo2RMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states):
        x = wide(hidden_states)
        return (self.weight * (x * root_mean_square(x, self.variance_epsilon))).to(hidden_states.dtype)


@at("transformers.models.t5.modeling_t5.T5LayerNorm")
class T5LayerNorm(LlamaRMSNorm):
    def forward(self, hidden_states):
        x = hidden_states * root_mean_square(wide(hidden_states), self.variance_epsilon)
        half = self.weight.dtype in (torch.float16, torch.bfloat16)
        return self.weight * (x.to(self.weight.dtype) if half else x)


@at("transformers.models.gemma.modeling_gemma.GemmaRMSNorm")
class GemmaRMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(size)), 1e-6

    def forward(self, x):
        scale = root_mean_square(wide(x), self.eps)
        return (wide(x) * scale * (1.0 + wide(self.weight))).type_as(x)


class ChannelsFirst(nn.LayerNorm):
    def __init__(self, size, **options):
        super().__init__(size, eps=1e-6, **options)

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@at("torchvision.models.convnext.LayerNorm2d")
class TorchvisionLayerNorm2d(ChannelsFirst):
    pass


@at("timm.layers.norm.LayerNorm2d")
class TimmLayerNorm2d(ChannelsFirst):
    _fast_norm = False


@at("transformers.models.convnext.modeling_convnext.ConvNextLayerNorm")
class ConvNextLayerNorm(nn.LayerNorm):
    def __init__(self, size, data_format="channels_first"):
        super().__init__(size, eps=1e-6)
        self.data_format = data_format

    def forward(self, features):
        if self.data_format == "channels_first":
            return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return super().forward(features)


@at("timm.layers.norm.LayerNorm")
class TimmLayerNorm(nn.LayerNorm):
    _fast_norm = False


@at("timm.layers.norm.GroupNorm1")
class TimmGroupNorm1(nn.GroupNorm):
    _fast_norm = False

    def __init__(self, channels):
        super().__init__(1, channels)


@at("timm.layers.norm.RmsNorm")
class TimmRmsNorm(nn.Module):
    _fast_norm = False

    def __init__(self, channels):
        super().__init__()
        self.normalized_shape, self.eps = (channels,), 1e-6
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * root_mean_square(x, self.eps) * self.weight


@at("timm.layers.norm_act.BatchNormAct2d")
class TimmBatchNormAct2d(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


@at("torchvision.ops.misc.FrozenBatchNorm2d")
class FrozenBatchNorm2d(nn.Module):
    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


@at("timm.layers.drop.DropPath")
class TimmDropPath(nn.Module):
    def __init__(self, drop_prob=0.5, scale_by_keep=True):
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x):
        if not self.training:
            return x
        noise = x.new_empty(len(x), *(1,) * (x.dim() - 1)).bernoulli_(1 - self.drop_prob)
        return x * noise / (1 - self.drop_prob if self.scale_by_keep else 1)


@at("torchvision.ops.stochastic_depth.StochasticDepth")
class StochasticDepth(nn.Module):
    def __init__(self, p=0.5, mode="row"):
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, input):
        rows = len(input) if self.mode == "row" else 1
        noise = input.new_empty(rows, *(1,) * (input.dim() - 1)).bernoulli_(1 - self.p)
        return input * noise / (1 - self.p) if self.training else input


ROWS, IMAGES = (2, 3, 8), (2, 8, 3, 3)
NORMS = {
    LlamaRMSNorm: (ROWS, "layer_norm"),
    Olmo2RMSNorm: (ROWS, "layer_norm"),
    T5LayerNorm: (ROWS, "layer_norm"),
    GemmaRMSNorm: (ROWS, "layer_norm"),
    ConvNextLayerNorm: (IMAGES, "layer_norm"),
    TorchvisionLayerNorm2d: (IMAGES, "layer_norm"),
    TimmLayerNorm2d: (IMAGES, "layer_norm"),
    TimmLayerNorm: (ROWS, "layer_norm"),
    TimmGroupNorm1: (IMAGES, "group_norm"),
    TimmRmsNorm: (ROWS, "layer_norm"),
    TimmBatchNormAct2d: (IMAGES, "batch_norm"),
    FrozenBatchNorm2d: (IMAGES, "batch_norm"),
}
every_norm = pytest.mark.parametrize("cls", NORMS, ids=lambda cls: cls.__name__)


def built(cls, device, dtype=torch.float32):
    layer = cls(8).to(device, dtype)
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2.0)
    return layer


def step(layer, x, dy):
    x = x.clone().requires_grad_()
    y = layer(x)
    gradients = torch.autograd.grad(y, [x, *layer.parameters()], dy.to(y.dtype))
    return [y.detach(), *gradients, *(b.clone() for b in layer.buffers())]


class Tripled(nn.SiLU):
    def forward(self, x):
        return 3 * super().forward(x)


def with_hook(layer):
    layer.act.register_forward_hook(lambda module, inputs, output: output * 2)


def with_drop_hook(layer):
    layer.drop.register_forward_pre_hook(lambda module, inputs: inputs[0] * 2)


TIMM_ACTS = {
    "fused": (True, lambda layer: None),
    "leaky_relu": (True, lambda layer: setattr(layer, "act", nn.LeakyReLU(0.3))),
    "gelu_tanh": (True, lambda layer: setattr(layer, "act", nn.GELU("tanh"))),
    "in place": (True, lambda layer: setattr(layer, "act", nn.ReLU(inplace=True))),
    "none": (False, lambda layer: setattr(layer, "act", nn.Identity())),
    "subclass": (False, lambda layer: setattr(layer, "act", Tripled())),
    "drop": (False, lambda layer: setattr(layer, "drop", nn.Hardtanh(-0.1, 0.1))),
    "hook": (False, with_hook),
    "hook on drop": (False, with_drop_hook),
    "forward": (False, lambda layer: setattr(layer.act, "forward", torch.tanh)),
}


@pytest.mark.parametrize(("fused", "change"), TIMM_ACTS.values(), ids=TIMM_ACTS)
def test_timms_activation_is_fused_or_called(device, fused, change):
    layer = built(TimmBatchNormAct2d, device, torch.float64)
    change(layer)
    twin = copy.deepcopy(layer)
    normreg.replace(layer)
    x, dy = (torch.randn(IMAGES, dtype=torch.float64, device=device) for _ in range(2))
    for result, expected in zip(step(layer, x, dy), step(twin, x, dy), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    operations = []
    with dispatch.watched(lambda operation, *_: operations.append(operation)):
        layer(x)
    assert operations == ["batch_norm_act" if fused else "batch_norm"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_norm
def test_computes_what_the_original_computes(device, launches, cls, dtype):
    shape, kernels = NORMS[cls]
    layer = built(cls, device, dtype)
    twin, exact = copy.deepcopy(layer), copy.deepcopy(layer).double()
    x, dy = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    (change,) = normreg.replace(nn.Sequential(layer)).changed
    assert change.now == f"normreg.{cls.__name__}"
    ours, launched = step(layer, x, dy), list(launches)
    assert launched[0].startswith(kernels)
    assert len(launched) >= 2
    theirs, references = step(twin, x, dy), step(exact, x.double(), dy.double())
    for mine, its, reference in zip(ours, theirs, references, strict=True):
        if mine.is_floating_point():
            assert_accurate(mine, its, reference, units=GRADIENT_UNITS)
        else:
            assert torch.equal(mine, its)


@every_norm
def test_nothing_but_the_forward_changes(device, cls):
    layer = built(cls, device)
    model = nn.Sequential(layer)
    state, contents = model.state_dict(keep_vars=True), dict(vars(layer))
    normreg.replace(model)
    assert isinstance(layer, cls)
    assert type(layer) is not cls
    assert type(layer).__name__ == cls.__name__
    assert all(vars(layer)[name] is value for name, value in contents.items())
    assert all(value is state[name] for name, value in model.state_dict(keep_vars=True).items())
    assert normreg.replace(model).changed == ()
    report = normreg.restore(model)
    assert [change.was for change in report.changed] == [f"normreg.{cls.__name__}"]
    assert type(layer) is cls


@pytest.mark.parametrize("cls", [LlamaRMSNorm, T5LayerNorm, TimmRmsNorm, FrozenBatchNorm2d])
def test_a_result_that_is_promoted_stays_so(device, launches, cls):
    """float32 parameters make the original's result float32, which normreg's is not."""
    layer = built(cls, device)
    x = torch.randn(NORMS[cls][0], device=device).bfloat16()
    expected = layer(x)
    normreg.replace(layer)
    y = layer(x)
    assert y.dtype == expected.dtype == torch.float32
    assert torch.equal(y, expected)
    assert launches == []


def test_what_a_flag_changes_is_left_to_the_original(device, launches):
    x = torch.randn(IMAGES, device=device)
    fast, last = built(TimmLayerNorm2d, device), ConvNextLayerNorm(3, "channels_last").to(device)
    batch = StochasticDepth(mode="batch")
    fast._fast_norm = True
    for layer in (fast, last, batch):
        normreg.replace(layer)
    assert torch.equal(fast(x), ChannelsFirst.forward(fast, x))
    assert launches == []
    assert torch.unique(batch(torch.ones(64, 2, device=device))).numel() == 1
    assert launches == []
    torch.testing.assert_close(last(x), F.layer_norm(x, (3,), eps=1e-6))
    assert launches == ["layer_norm_forward_kernel"]


@pytest.mark.parametrize("make", [TimmDropPath, StochasticDepth])
def test_whole_samples_are_dropped(device, launches, make):
    layer = make()
    normreg.replace(layer)
    x = torch.ones(200, 3, device=device, requires_grad=True)
    y = layer(x)
    assert launches == ["dropout_grouped_kernel"]
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(y[:, :1].expand_as(y), y)
    assert 60 < (y[:, 0] > 0).sum() < 140
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx, y)
    assert layer.eval()(x) is x


class ScaleNorm(nn.Module):
    """Somebody's own."""

    def __init__(self, size=8):
        super().__init__()
        self.scale = nn.Parameter(torch.full((size,), 2.0))

    def forward(self, x):
        return x * root_mean_square(x, 1e-5) * self.scale


class Subclass(ScaleNorm):
    pass


@pytest.fixture
def scale_norm(monkeypatch):
    monkeypatch.setattr(registry, "FORWARDS", dict(registry.FORWARDS))

    @normreg.register_layer(ScaleNorm)
    def forward(module, x):
        return normreg.functional.rms_norm(x, module.scale.shape, module.scale, 1e-5)

    return forward


@pytest.mark.parametrize("how", [copy.deepcopy, pickle, torch.save], ids=["deepcopy", "pickle", "torch.save"])
def test_copies(device, launches, scale_norm, how):
    model = nn.Sequential(ScaleNorm(), nn.LayerNorm(8)).to(device)
    model[0].hook_count = 3
    normreg.replace(model)
    if how is pickle:
        twins = [
            pickle.loads(pickle.dumps(model, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ]
    elif how is torch.save:
        twins = [saved_and_loaded(model)]
    else:
        twins = [how(model)]
    x = torch.randn(2, 8, device=device)
    expected = model(x)
    for twin in twins:
        assert type(twin[0]) is type(model[0])
        assert twin[0].hook_count == 3
        launches.clear()
        assert torch.equal(twin(x), expected)
        assert len(launches) == 2


def test_a_copy_where_the_class_is_not_registered(scale_norm):
    model = ScaleNorm()
    normreg.replace(model)
    pickled = pickle.dumps(model)
    del registry.FORWARDS[registry.path_of(ScaleNorm)]
    assert type(pickle.loads(pickled)) is ScaleNorm


def test_exact_classes_only(device, scale_norm):
    model = nn.Sequential(ScaleNorm(), Subclass())
    report = normreg.replace(model)
    assert [change.name for change in report.changed] == ["0"]
    assert type(model[1]) is Subclass


def test_include_and_exclude_know_them(scale_norm):
    model = nn.Sequential(ScaleNorm(), nn.LayerNorm(8))
    assert [change.name for change in normreg.replace(model, include=ScaleNorm).changed] == ["0"]
    assert [change.name for change in normreg.replace(model, exclude=ScaleNorm).changed] == ["1"]


def test_explain_names_them(device, scale_norm):
    model = nn.Sequential(ScaleNorm(), nn.Identity()).to(device)
    x = torch.randn(2, 8, device=device)
    assert [skip.name for skip in normreg.explain(model, x).not_replaced] == ["0"]
    normreg.replace(model)
    explanation = normreg.explain(model, x)
    assert [(call.name, call.path) for call in explanation] == [("0", "kernel")]
    assert explanation.not_called == ()


def test_as_before_is_the_original(device, scale_norm):
    layer = ScaleNorm().to(device)
    x = torch.randn(2, 8, device=device)
    expected = layer(x)
    normreg.replace(layer)
    assert torch.equal(normreg.as_before(layer, x), expected)


def test_register_by_import_path(monkeypatch):
    monkeypatch.setattr(registry, "FORWARDS", {})
    normreg.register_layer("somewhere.norms.Norm", ScaleNorm)(len)
    assert set(registry.FORWARDS) == {"somewhere.norms.Norm", f"{__name__}.ScaleNorm"}


def test_restored_whatever_happened_since(device, monkeypatch):
    """A forward from another module than the class's, as users register it, and settings of other tools."""
    monkeypatch.setattr(registry, "FORWARDS", dict(registry.FORWARDS))

    def theirs(module, x):
        return normreg.functional.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)

    theirs.__module__ = "somebodys_script"
    normreg.register_layer("transformers.models.llama.modeling_llama.LlamaRMSNorm")(theirs)
    model = nn.Sequential(LlamaRMSNorm(8), nn.LayerNorm(8)).to(device)
    was = [type(module) for module in model]
    normreg.replace(model)
    assert type(model[0]).forward is theirs
    model[1].qconfig = torch.ao.quantization.default_qconfig
    report = normreg.restore(model)
    assert [type(module) for module in model] == was
    assert report.skipped == ()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((), "at least one class"),
        ((3,), "got 3"),
        (("Norm",), "got 'Norm'"),
        ((ScaleNorm(),), "got ScaleNorm()"),
    ],
    ids=str,
)
def test_what_cannot_be_registered(classes, message):
    before = dict(registry.FORWARDS)
    with pytest.raises(TypeError) as caught:
        normreg.register_layer(*classes)
    assert message in str(caught.value)
    with pytest.raises(TypeError, match="expected a function"):
        normreg.register_layer(ScaleNorm)(None)
    assert before == registry.FORWARDS


def test_import_paths_are_well_formed_and_counted_in_readme():
    libraries = Counter(path.split(".")[0] for path in registry.FORWARDS)
    assert all(path.split(".")[-1].isidentifier() for path in registry.FORWARDS)
    readme = " ".join((Path(__file__).parent.parent / "README.md").read_text().split())
    assert (
        f"{libraries.pop('transformers')} classes of transformers (as of its release 5.23), "
        f"{libraries.pop('timm')} of timm and {libraries.pop('torchvision')} of torchvision"
    ) in readme
    assert not libraries
