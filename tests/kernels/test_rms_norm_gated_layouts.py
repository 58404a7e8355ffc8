"""RMSNorm and a gate of pieces of a projection, read where they are, and of other strides."""

import pytest
import torch
from gated_norms import KERNELS, assert_gated, every_order, made
from support.reference import in_every_layout, in_layout

from normreg import functional
from normreg.kernels import gated_norm


@pytest.mark.parametrize(
    ("shape", "layout"), in_every_layout(((6,),), ((3, 6),), ((2, 3, 6),), ((2, 3, 4, 6),))
)
@every_order
def test_layouts_of_gradients(device, shape, layout, order):
    inputs = made(device, torch.float32, *shape)
    assert_gated(inputs, in_layout(layout, inputs[0]), group_size=3, **order)


def slices(device, dtype):
    """x and gate of one projection, as (rows, cols)."""
    return torch.randn(7, 3 * 16, device=device).to(dtype).split([16, 16, 16], -1)[:2]


def odd_slices(device, dtype):
    """x and gate of rows that are no multiple of a vector."""
    return torch.randn(7, 2 * 16 + 1, device=device).to(dtype).split([16, 1, 16], -1)[::2]


def heads(device, dtype):
    """x and gate of every head of a projection in which a token's heads lie beside others."""
    x, gate, _ = torch.randn(2, 3, 3 * 4 * 8, device=device).to(dtype).chunk(3, -1)
    return x.unflatten(-1, (4, 8)), gate.unflatten(-1, (4, 8))


def gates_alone(device, dtype):
    """x as a kernel of attention has written it, and the gate where the projection is."""
    return torch.randn(2, 3, 4, 8, device=device).to(dtype), heads(device, dtype)[1]


def of_a_head(device, dtype):
    """x of each head and the gate beside it: evenly apart."""
    return torch.randn(2, 3, 4, 2 * 8, device=device).to(dtype).chunk(2, -1)


IN_PLACE = {make.__name__: make for make in (slices, odd_slices, heads, gates_alone, of_a_head)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", IN_PLACE.values(), ids=IN_PLACE)
@every_order
def test_pieces_of_a_projection_are_read_where_they_are(device, launches, make, dtype, order):
    x, gate = (t.detach().requires_grad_() for t in make(device, dtype))
    of_groups = gated_norm.in_groups(x, gate, x.shape[-1])
    assert [t.data_ptr() for t in of_groups[:2]] == [x.data_ptr(), gate.data_ptr()]
    weight = torch.randn(x.shape[-1], device=device).to(dtype).requires_grad_()
    assert_gated([x, gate, weight, weight.detach().neg().requires_grad_()], **order)
    assert launches == KERNELS


def test_groups_of_a_slice_are_read_where_they_are(device):
    x, gate = slices(device, torch.float32)
    *views, layout = gated_norm.in_groups(x, gate, 4)
    assert [t.data_ptr() for t in views] == [x.data_ptr(), gate.data_ptr()]
    assert layout == (7, 4, 4, (48, 4, 48, 4), False)
    inputs = [t.detach().requires_grad_() for t in (x, gate, torch.randn(16), torch.randn(16))]
    assert_gated([t.to(device) for t in inputs], group_size=4, norm_before_gate=False)


VIEWS = {
    "transposed": lambda x: x.transpose(0, 1),
    "rows sliced": lambda x: x[:, ::2],
    "cols sliced": lambda x: x[..., ::2],
    "flipped": lambda x: x.flip(0),
    "expanded": lambda x: x[:1].expand(4, -1, -1),
    "odd": lambda x: x[..., 1:6],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("which", [0, 1], ids=["x", "gate"])
def test_strides_of_either(device, view, which):
    pair = [view(torch.randn(4, 6, 8, device=device)).detach() for _ in range(2)]
    pair[1 - which] = pair[1 - which].clone(memory_format=torch.contiguous_format)
    weight, bias = torch.randn(2, pair[0].shape[-1], 2, device=device)[..., 0]
    assert_gated([t.detach().requires_grad_() for t in (*pair, weight, bias)])


@every_order
def test_heads_in_a_projection_have_the_bits_of_a_copy(device, order):
    x, gate = heads(device, torch.bfloat16)
    weight = torch.randn(8, device=device).bfloat16()
    in_place = functional.rms_norm_gated(x, gate, weight, **order)
    assert torch.equal(in_place, functional.rms_norm_gated(x.clone(), gate.clone(), weight, **order))
