"""RMSNorm over channels: what it adds to LayerNorm's, which is tested in test_layer_norm_channels.py."""

import pytest
import torch
import torch.nn.functional as F
from positions import SHAPES, inputs_of
from support.reference import DTYPES, assert_agrees, gradient_layouts

import normreg

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def permuting(x, weight=None, eps=1e-3):
    """timm's RmsNorm2d, in the memory format of x."""
    y = F.rms_norm(x.movedim(1, -1), x.shape[1:2], weight, eps).movedim(-1, 1)
    return y.contiguous() if x.is_contiguous() else y.contiguous(memory_format=LAST[x.dim()])


def ours(x, weight=None, eps=1e-3):
    return normreg.functional.rms_norm_channels(x, weight, eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)  # of one position torch keeps x's strides
def test_agrees_with_the_permuting_layer(device, guarded_memory, launches, shape, dtype):
    inputs = [guarded_memory.place(t) for t in inputs_of(shape, dtype, device, (True,))]
    assert_agrees(ours, permuting, inputs)
    assert launches[-1] == "column_sums_kernel"


@pytest.mark.parametrize("present", [True, False], ids=["weight", ""])
@pytest.mark.parametrize("shape", [(2, 17, 5, 13), (1, 2100, 3, 11), (2, 9, 2, 3, 4)], ids=str)
def test_channels_last_is_taken_as_rows_and_stays(device, shape, present):
    inputs = inputs_of(shape, torch.float32, device, (present,))
    inputs[0] = inputs[0].detach().to(memory_format=LAST[len(shape)]).requires_grad_()
    assert_agrees(ours, permuting, inputs)
    assert ours(*inputs).is_contiguous(memory_format=LAST[len(shape)])


@pytest.mark.parametrize("shape", [(2, 17, 5, 13), (1, 2100, 3, 11)], ids=str)
@pytest.mark.parametrize("wanted", [(1, 0), (0, 1)], ids=str)
def test_gradient_of_any_subset(device, shape, wanted):
    inputs = inputs_of(shape, torch.float32, device, (True,))
    for tensor, want in zip(inputs, wanted):
        tensor.requires_grad_(bool(want))
    for _, dy in gradient_layouts(inputs[0].detach()):
        assert_agrees(ours, permuting, inputs, dy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_eps_of_none_is_that_of_the_dtype_computed_in(device, dtype):
    x = torch.full((1, 4, 3), 1e-6, device=device, dtype=dtype)
    for memory in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
        eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        exact = memory.double() / (memory.double().square() + eps).sqrt()
        torch.testing.assert_close(normreg.functional.rms_norm_channels(memory), exact.to(dtype))


def test_layer(device, launches):
    layer = normreg.RMSNorm2d(6, device=device)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(2, 6, 3, 4, device=device)
    torch.testing.assert_close(layer(x), permuting(x, layer.weight, 1e-6))
    assert launches == ["layer_norm_forward_kernel"]
    assert list(layer.state_dict()) == ["weight"]
    plain = normreg.RMSNorm2d(6, 1e-3, False, device=device)
    assert plain.weight is None
    torch.testing.assert_close(plain(x), permuting(x))
    with pytest.raises(ValueError, match=r"RMSNorm2d expected an input of 4 dimensions, .* take RMSNorm"):
        layer(x[0, :, :, 0])
    with pytest.raises(ValueError, match=r"a weight of shape \(4,\), one value for each channel of the inp"):
        layer(x[:, :4])
