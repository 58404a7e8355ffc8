"""out_dtype= of norms and their layers, and `autocast_output`."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support.reference import DTYPES, copies, error, run, unit

import normreg
from bench.operations import OURS, TORCH
from normreg import functional
from normreg.functional import dispatch

LIBRARIES = {functional: OURS, F: TORCH}
ANGLES = torch.randn(2, 1, 8).bfloat16()
CALLS = {
    "layer_norm": lambda library, x, w, b, **o: library.layer_norm(x, x.shape[1:2], w, b, **o),
    "rms_norm": lambda library, x, w, b, **o: library.rms_norm(x, x.shape[1:2], w, 1e-5, **o),
    "group_norm": lambda library, x, w, b, **o: library.group_norm(x, 4, w, b, **o),
    "group_norm_act": lambda library, x, w, b, **o: (
        functional.group_norm_act(x, 4, w, b, **o)
        if library is functional
        else F.silu(F.group_norm(x, 4, w, b))
    ),
    "layer_norm_channels": lambda library, x, w, b, **o: (
        functional.layer_norm_channels(x, w, b, 1e-5, **o)
        if library is functional
        else F.layer_norm(x, x.shape[1:2], w, b)
    ),
    "ada_layer_norm": lambda library, x, w, b, **o: (
        functional.ada_layer_norm(x, w, b, **o)
        if library is functional
        else F.layer_norm(x, x.shape[1:2], eps=1e-6) * (1 + w) + b
    ),
    "ada_rms_norm of a sum": lambda library, x, w, b, **o: (
        functional.ada_rms_norm(x, w, residual=x, **o)
        if library is functional
        else F.rms_norm(x + x, x.shape[1:2], eps=1e-6) * (1 + w)
    ),
    "rms_norm_channels": lambda library, x, w, b, **o: (
        functional.rms_norm_channels(x, w, 1e-5, **o)
        if library is functional
        else F.rms_norm(x, x.shape[1:2], w, 1e-5)
    ),
    "layer_norm of a sum": lambda library, x, w, b, **o: (
        functional.layer_norm(x, x.shape[1:2], w, b, residual=x, **o)
        if library is functional
        else F.layer_norm(x + x, x.shape[1:2], w, b)
    ),
    "rms_norm of a sum": lambda library, x, w, b, **o: (
        functional.rms_norm(x, x.shape[1:2], w, 1e-5, residual=x, prenorm=True, **o)[0]
        if library is functional
        else F.rms_norm(x + x, x.shape[1:2], w, 1e-5)
    ),
    "rms_norm_gated": lambda library, x, w, b, **o: LIBRARIES[library].rms_norm_gated(x, x, w, b, **o),
    "qk_norm": lambda library, x, w, b, **o: torch.cat(
        LIBRARIES[library].qk_norm(x[:4], x[4:], w, b, rotary=[*ANGLES.to(x)], **o)
    ),
}
every_call = pytest.mark.parametrize("name", CALLS)
LAYERS = {
    "LayerNorm": (16,),
    "RMSNorm": (16,),
    "GroupNorm": (4, 16),
    "GroupNormAct": (4, 16),
    "LayerNorm2d": (16,),
    "RMSNorm2d": (16,),
    "DropoutAddLayerNorm": (16,),
    "DropoutAddRMSNorm": (16,),
    "AdaLayerNorm": (16,),
    "AdaRMSNorm": (16,),
    "RMSNormGated": (16,),
    "QKNorm": (16,),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def inputs(device, dtype, parameter_dtype):
    x = torch.randn(6, 16, device=device).to(dtype)
    return [t.requires_grad_() for t in (x, *torch.randn(2, 16, device=device).to(parameter_dtype))]


def in_torch(monkeypatch):
    monkeypatch.setattr(dispatch, "tensor_reason", lambda *_: "a test asks for torch's operators")


@pytest.mark.parametrize("path", ["kernel", "torch"])
@pytest.mark.parametrize("out_dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize(
    ("dtype", "parameter_dtype"),
    [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)],
    ids=str,
)
@every_call
def test_results_are_rounded_once(
    device, launches, monkeypatch, name, dtype, parameter_dtype, out_dtype, path
):
    """y is within half a unit of its own dtype, or of float32's arithmetic; gradients have their tensors'."""
    if path == "torch":
        in_torch(monkeypatch)
    tensors = inputs(device, dtype, parameter_dtype)
    if "rms" in name:
        tensors.pop()
    dy = torch.randn(6, 16, device=device).to(out_dtype)
    call = lambda library, *t, **o: CALLS[name](library, *t, *[None] * (3 - len(t)), **o)  # noqa: E731
    y, *gradients = run(lambda *t: call(functional, *t, out_dtype=out_dtype), tensors, dy)
    exact, *exact_gradients = run(lambda *t: call(F, *t), copies(tensors, torch.float64), dy.double())
    assert y.dtype == out_dtype
    assert bool(launches) == (path == "kernel")
    assert error(y, exact) <= 0.51 * unit(exact, out_dtype) + 8 * unit(exact, torch.float32)
    for gradient, truth, tensor in zip(gradients, exact_gradients, tensors, strict=True):
        assert gradient.dtype == tensor.dtype
        assert error(gradient, truth) <= 4 * unit(truth, tensor.dtype)


@every_call
def test_float64_gives_float32(device, launches, name):
    """Kernels that compute in float64 for a result of float32, which another arithmetic is for elsewhere."""
    tensors = inputs(device, torch.float64, torch.float64)
    tensors[2] = None if "rms" in name else tensors[2]
    y = CALLS[name](functional, *tensors, out_dtype=torch.float32)
    exact = CALLS[name](F, *tensors)
    assert y.dtype == torch.float32
    assert launches
    assert error(y, exact) <= 0.51 * unit(exact, torch.float32)


@every_call
def test_second_derivatives(device, name):
    """A float64 result of float32 has them; the formula must compute in the input's dtype."""
    tensors = inputs(device, torch.float32, torch.float32)[: 2 if "rms" in name else 3]

    def twice(library, tensors, **options):
        y = CALLS[name](library, *tensors, *[None] * (3 - len(tensors)), **options)
        (dx,) = torch.autograd.grad((y.double() ** 3).sum(), tensors[0], create_graph=True)
        return torch.autograd.grad((dx.double() ** 2).sum(), tensors[:2])

    ours, exact = (
        twice(functional, tensors, out_dtype=torch.float64),
        twice(F, copies(tensors, torch.float64)),
    )
    for gradient, truth in zip(ours, exact, strict=True):
        assert gradient.dtype == torch.float32
        assert error(gradient, truth) <= 64 * unit(truth, torch.float32)


@every_call
def test_another_dtype_is_refused(device, launches, name):
    tensors = inputs(device, torch.float32, torch.float32)
    with pytest.raises(ValueError, match=r"^expected out_dtype to be one of .*got torch.int8: pass None"):
        CALLS[name](functional, *tensors, out_dtype=torch.int8)
    assert launches == []


@every_layer
def test_layers(device, kind):
    """The constructor takes it, repr says it, copies have it; a layer of torch.nn gets none by `replace`."""
    layer = getattr(normreg, kind)(*LAYERS[kind], device=device, out_dtype=torch.bfloat16)
    x = torch.randn(3, 16, 2, 2, device=device) if kind.endswith("2d") else torch.randn(3, 16, device=device)
    arguments = (x, x) if kind in ("QKNorm", "RMSNormGated", "AdaLayerNorm", "AdaRMSNorm") else (x,)
    dtypes = lambda layer: {y.dtype for y in layer(*arguments)}  # noqa: E731
    for one in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert dtypes(one) == {torch.bfloat16}
        assert ", out_dtype=torch.bfloat16" in repr(one)
    layer.out_dtype = None
    assert dtypes(layer) == {torch.float32}
    plain = getattr(normreg, kind)(*LAYERS[kind], device=device)
    assert "out_dtype" not in repr(plain)
    assert "out_dtype" not in vars(plain)
    with pytest.raises(ValueError, match=r"^expected out_dtype to be one of"):
        getattr(normreg, kind)(*LAYERS[kind], out_dtype=torch.int8)


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm", "GroupNorm"])
def test_a_replaced_layer_takes_it_as_an_attribute(device, kind):
    layer = getattr(torch.nn, kind)(*LAYERS[kind]).to(device)
    normreg.replace(layer)
    x = torch.randn(3, 16, device=device, dtype=torch.bfloat16)
    layer.out_dtype = torch.bfloat16
    assert layer(x).dtype == torch.bfloat16
    normreg.restore(layer)
    assert type(layer) is getattr(torch.nn, kind)


class OfBoth(normreg.QKNorm):
    def __init__(self):
        super().__init__(16, norm="layer_norm")

    def forward(self, x):
        return super().forward(x, x)[1]


def test_autocast_output(device):
    """On a GPU results of 16 bits are float32 under autocast; "input" leaves 16 bits, on both paths."""
    x = torch.randn(4, 16, device=device, dtype=torch.bfloat16)
    layers = [normreg.LayerNorm(16), normreg.RMSNorm(16), normreg.GroupNorm(4, 16), OfBoth()]
    layers = [layer.to(device) for layer in layers]
    with torch.autocast(device.type, torch.bfloat16):
        dtypes = [layer(x).dtype for layer in layers]
        with normreg.autocast_output("input"):
            assert [layer(x).dtype for layer in layers] == [torch.bfloat16] * 4
            assert [layer(x.float()).dtype for layer in layers] == [torch.float32] * 4
            assert normreg.LayerNorm(16, device=device, out_dtype=torch.float32)(x).dtype == torch.float32
        assert [layer(x).dtype for layer in layers] == dtypes
    if device.type == "cuda":
        assert dtypes[0] == torch.float32


def test_autocast_output_of_a_gpu(monkeypatch):
    """What `dispatch` answers for a tensor of a GPU, which this machine need not have."""
    x = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    assert dispatch.layer_norm_dtype(x) == torch.float32
    assert dispatch.layer_norm_dtype(x, torch.float16) == torch.float16
    with normreg.autocast_output("input"):
        assert dispatch.layer_norm_dtype(x) == dispatch.rms_norm_dtype(x) == torch.bfloat16
        with normreg.autocast_output("torch"):
            assert dispatch.layer_norm_dtype(x) == torch.float32
        assert dispatch.layer_norm_dtype(x) == torch.bfloat16


def test_autocast_output_is_on_from_the_call_on():
    setting = normreg.autocast_output("input")
    try:
        assert dispatch.AUTOCAST_OUTPUT == "input"
    finally:
        setting.__exit__()
    assert dispatch.AUTOCAST_OUTPUT == "torch"
    with pytest.raises(ValueError, match=r"^expected 'input' or 'torch', got 'float16': pass 'input'"):
        normreg.autocast_output("float16")


def test_fallback_under_autocast_output(monkeypatch, device):
    """torch's operators give float32 there on a GPU; the result is the input's dtype all the same."""
    in_torch(monkeypatch)
    monkeypatch.setattr(F, "layer_norm", lambda x, *rest: torch.layer_norm(x.float(), *rest))
    x = torch.randn(4, 16, device=device, dtype=torch.bfloat16)
    with torch.autocast(device.type, torch.bfloat16), normreg.autocast_output("input"):
        assert functional.layer_norm(x, (16,)).dtype == torch.bfloat16
    assert functional.layer_norm(x, (16,)).dtype == torch.float32
