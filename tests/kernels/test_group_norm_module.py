"""GroupNorm under autocast, what it saves, and its module."""

import pytest
import torch
import torch.nn.functional as F
from over_channels import inputs_for
from support.reference import (
    DTYPES,
    assert_accurate,
    error,
    unit,
)

import normreg


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast(device, launches, dtype):
    """Autocast gives float32 from 16 bits where torch's does: on a GPU."""
    x = torch.randn(5, 6, 4, device=device, dtype=dtype)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        theirs = F.group_norm(x, 2)
        assert launches == []
        ours = normreg.functional.group_norm(x, 2)
    assert launches == ["group_norm_forward_kernel"]
    assert_accurate(ours, theirs, F.group_norm(x.double(), 2))


def test_statistics_are_saved_in_float32(device):
    saved = []
    x, weight, bias = inputs_for((4, 6, 5, 5), torch.bfloat16, device)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        normreg.functional.group_norm(x, 2, weight, bias)
    inputs = [(torch.bfloat16, x.numel()), (torch.bfloat16, 6)]
    assert [(t.dtype, t.numel()) for t in saved] == [*inputs, (torch.float32, 4 * 2 * 3)]


def test_without_gradients_nothing_is_saved(device):
    x = torch.randn(4, 8, device=device, requires_grad=True)
    with torch.no_grad():
        assert not normreg.functional.group_norm(x, 2).requires_grad
    with torch.inference_mode():
        assert normreg.functional.group_norm(x, 2).is_inference()


@pytest.mark.parametrize("affine", [True, False])
def test_module(device, affine):
    theirs, ours = (
        library.GroupNorm(3, 6, eps=1e-3, affine=affine, device=device) for library in (torch.nn, normreg)
    )
    assert repr(ours) == repr(theirs)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 6, 4, device=device)
    assert error(ours(input=x), theirs.double()(x.double())) <= 2 * unit(theirs(x.double()), torch.float32)
