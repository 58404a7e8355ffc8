"""Layers of other libraries, by the stand-ins of `foreign_layers.py`."""

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from foreign_layers import (
    IMAGES,
    NORMS,
    ChannelsFirst,
    ConvNextLayerNorm,
    FrozenBatchNorm2d,
    LlamaRMSNorm,
    StochasticDepth,
    T5LayerNorm,
    TimmBatchNormAct2d,
    TimmDropPath,
    TimmGroupNormAct,
    TimmLayerNorm2d,
    TimmRmsNorm,
    TimmRmsNorm2d,
    every_norm,
)
from support.reference import assert_accurate
from torch import nn

import normreg
from normreg.functional import dispatch
from normreg.models import registry


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


@pytest.mark.parametrize(
    ("cls", "operation"), [(TimmBatchNormAct2d, "batch_norm"), (TimmGroupNormAct, "group_norm")]
)
@pytest.mark.parametrize(("fused", "change"), TIMM_ACTS.values(), ids=TIMM_ACTS)
def test_timms_activation_is_fused_or_called(device, fused, change, cls, operation):
    layer = built(cls, device, torch.float64)
    change(layer)
    twin = copy.deepcopy(layer)
    normreg.replace(layer)
    x, dy = (torch.randn(IMAGES, dtype=torch.float64, device=device) for _ in range(2))
    for result, expected in zip(step(layer, x, dy), step(twin, x, dy), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    operations = []
    with dispatch.watched(lambda operation, *_: operations.append(operation)):
        layer(x)
    assert operations == [f"{operation}_act" if fused else operation]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_norm
def test_computes_what_the_original_computes(device, launches, cls, dtype):
    shape, kernels = NORMS[cls]
    layer = built(cls, device, dtype)
    twin, exact = copy.deepcopy(layer), copy.deepcopy(layer).double()
    x, dy = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    (change,) = normreg.replace(nn.Sequential(layer)).changed
    assert change.now == registry.path_of(registry.FORWARDS[registry.path_of(cls)])
    ours, launched = step(layer, x, dy), list(launches)
    assert launched[0].startswith(kernels)
    assert len(launched) >= 2
    theirs, references = step(twin, x, dy), step(exact, x.double(), dy.double())
    for mine, its, reference in zip(ours, theirs, references, strict=True):
        if mine.is_floating_point():
            assert_accurate(mine, its, reference)
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
    forward = registry.FORWARDS[registry.path_of(cls)]
    assert [change.was for change in report.changed] == [registry.path_of(forward)]
    assert type(layer) is cls


@pytest.mark.parametrize("cls", [TimmRmsNorm, TimmRmsNorm2d, FrozenBatchNorm2d])
def test_a_result_that_is_promoted_stays_so(device, launches, cls):
    """float32 parameters make the original's result float32, which normreg's layer would not."""
    layer = built(cls, device)
    x = torch.randn(NORMS[cls][0], device=device).bfloat16()
    expected = layer(x)
    normreg.replace(layer)
    y = layer(x)
    assert y.dtype == expected.dtype == torch.float32
    assert torch.equal(y, expected)
    assert launches == []


@pytest.mark.parametrize("cls", [LlamaRMSNorm, T5LayerNorm])
def test_a_promoted_result_is_not_rounded(device, launches, cls):
    """float32 weights make the original's result float32, and so does normreg's layer, by the kernel."""
    layer = built(cls, device)
    x = torch.randn(NORMS[cls][0], device=device).bfloat16()
    expected, exact = layer(x), layer(x.float())
    normreg.replace(layer)
    y = layer(x)
    assert y.dtype == expected.dtype == torch.float32
    assert launches == ["layer_norm_forward_kernel"]
    assert (y - exact).abs().max() <= 2**-20 * exact.abs().max()


@pytest.mark.parametrize("cls", [LlamaRMSNorm, T5LayerNorm])
def test_weights_of_fewer_bits_are_left_to_the_original(device, launches, cls):
    layer = built(cls, device, torch.bfloat16)
    x = torch.randn(NORMS[cls][0], device=device)
    expected = layer(x)
    normreg.replace(layer)
    assert torch.equal(layer(x), expected)
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


def test_import_paths_are_well_formed_and_counted_on_the_page():
    libraries = Counter(path.split(".")[0] for path in registry.FORWARDS)
    assert all(path.split(".")[-1].isidentifier() for path in registry.FORWARDS)
    readme = " ".join((Path(__file__).parents[2] / "README.md").read_text().split())
    assert (
        f"{libraries.pop('transformers')} classes of transformers, "
        f"{libraries.pop('diffusers')} of diffusers, "
        f"{libraries.pop('timm')} of timm and {libraries.pop('torchvision')} of torchvision"
    ) in readme
    assert not libraries
