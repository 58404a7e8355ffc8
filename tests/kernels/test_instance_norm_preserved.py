"""InstanceNorm that keeps channels_last, which torch's does not: memory_format=torch.preserve_format."""

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from instances import both_modes, running_for
from over_channels import LAST, VIEWS, inputs_for, nothing_fits_a_tile
from support.reference import DTYPES, assert_agrees, gradient_layouts
from torch._prims_common import suggest_memory_format

import normreg
from normreg.functional import dispatch

SHAPES = [(2, 3, 7, 5), (3, 70, 5, 3), (2, 64, 16, 16), (3, 40, 3, 5, 4), (1, 20, 33, 65), (2, 9, 31, 35)]


def preserving(x, weight, bias, running=(None, None), use_input_stats=True, library=normreg.functional):
    """normreg's function with torch.preserve_format or, of F, torch's with its result in x's format."""
    buffers = [None if buffer is None else buffer.to(x.dtype, copy=True) for buffer in running]
    arguments = x, *buffers, weight, bias, use_input_stats, 0.3
    if library is F:
        y = F.instance_norm(
            *arguments
        ).flatten()  # whose gradient is contiguous: with others torch's is wrong
        return y.view(x.shape).contiguous(memory_format=LAST[x.dim()])
    return library.instance_norm(*arguments, memory_format=torch.preserve_format)


def last_inputs(shape, dtype, device, **options):
    x, *parameters = inputs_for(shape, dtype, device, **options)
    return [x.detach().contiguous(memory_format=LAST[len(shape)]).requires_grad_(), *parameters]


@both_modes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_channels_last_is_preserved(device, guarded_memory, launches, shape, dtype, use_input_stats):
    inputs = [guarded_memory.place(t) for t in last_inputs(shape, dtype, device)]
    options = dict(running=running_for(shape, device), use_input_stats=use_input_stats)
    theirs = functools.partial(preserving, **options, library=F)
    dx = assert_agrees(functools.partial(preserving, **options), theirs, inputs)[1]
    assert dx.stride() == inputs[0].stride() == torch.empty_like(inputs[0]).stride()
    assert any("norm" in name for name in launches)


@pytest.mark.parametrize("affine", ["weight", "bias", ""])
@pytest.mark.parametrize("regime", ["tile", "split"])
def test_absent_parameters_of_channels_last(device, monkeypatch, regime, affine):
    if regime == "split":
        nothing_fits_a_tile(monkeypatch)
    inputs = last_inputs((3, 40, 3, 4), torch.float32, device, affine=affine)
    for _, dy in gradient_layouts(inputs[0].detach()):
        assert_agrees(preserving, functools.partial(preserving, library=F), inputs, dy)


def test_a_sample_of_channels_last_does_not_depend_on_the_others(device):
    for shape in ((3, 64, 16, 16), (3, 9, 31, 35)):
        x, weight, bias = last_inputs(shape, torch.float32, device)
        y, alone = preserving(x, weight, bias), preserving(x[1:2], weight, bias)
        assert torch.equal(y[1:2], alone)


@both_modes
def test_a_sample_that_torch_takes(device, monkeypatch, use_input_stats):
    """torch's own backward is wrong for one sample's dy in channels_last, which such networks have."""
    monkeypatch.setattr(dispatch, "tensor_reason", lambda *_: "a test asks for torch's operators")
    inputs = last_inputs((1, 8, 3, 5), torch.float32, device)
    options = dict(running=running_for((1, 8, 3, 5), device), use_input_stats=use_input_stats)
    theirs = functools.partial(preserving, **options, library=F)
    dy = torch.randn(1, 8, 3, 5, device=device).contiguous(memory_format=torch.channels_last)
    assert_agrees(functools.partial(preserving, **options), theirs, inputs, dy)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_what_is_preserved_of_other_strides(device, view):
    """channels_last of a slice, too; of strides that are neither, and where torch computes, a copy."""
    x = view(torch.randn(4, 4, 6, 8, device=device))
    y = normreg.functional.instance_norm(x, memory_format=torch.preserve_format)
    torch.testing.assert_close(y, F.instance_norm(x))
    assert y.is_contiguous(memory_format=suggest_memory_format(x))
    meta = x.to("meta")
    of_torch = normreg.functional.instance_norm(meta, memory_format=torch.preserve_format)
    assert of_torch.stride() == torch.empty_like(meta, memory_format=suggest_memory_format(meta)).stride()


def test_the_memory_format_of_layers(device):
    x = torch.randn(2, 8, 3, 5, device=device).contiguous(memory_format=torch.channels_last)
    given = normreg.InstanceNorm2d(8, device=device, memory_format=torch.preserve_format)
    later = torch.nn.InstanceNorm2d(8, device=device)
    normreg.replace(later)
    assert later(x).is_contiguous()
    assert repr(later) == repr(torch.nn.InstanceNorm2d(8))
    later.memory_format = torch.preserve_format
    for layer in (given, later, copy.deepcopy(given), pickle.loads(pickle.dumps(later))):
        assert layer(x).stride() == x.stride()
        assert layer(x[0]).stride() == x[0].stride()  # without a batch
        assert "memory_format=torch.preserve_format" in repr(layer)
    normreg.restore(later)
    assert later(x).is_contiguous()
    with pytest.raises(ValueError, match=r"torch.preserve_format, got torch.channels_last: pass"):
        normreg.InstanceNorm2d(8, memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="expected memory_format to be"):
        normreg.functional.instance_norm(x, memory_format=None)
