"""LayerNorm and RMSNorm of rows that are further apart than they are long, which are read where they are."""

import pytest
import torch
from over_rows import LIKE_LAYER_NORM
from support.reference import HALVES, IN_TILES, WIDE, assert_agrees, run

from normreg.kernels import layer_norm

every_norm = pytest.mark.parametrize("name", LIKE_LAYER_NORM)


def part(rows, cols, gap, device, dtype):
    """[rows, cols] out of a tensor with `gap` more columns, all of them nan."""
    whole = torch.full((rows, cols + gap), float("nan"), device=device, dtype=dtype)
    x = whole[:, gap // 2 :][:, :cols]
    return x.copy_(torch.randn(rows, cols, device=device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("gap", [16, 6], ids=["16 apart", "6 apart"])
# a tile of several rows, rows in halves, in tiles, one in a tile and wide ones
@pytest.mark.parametrize("cols", [3, 100, 512, 2048, IN_TILES, HALVES, WIDE])
@every_norm
def test_rows_of_a_slice(device, monkeypatch, name, cols, gap, dtype):
    read, real = [], layer_norm.launch.launch

    def noting(call, *tensors, **options):
        read.append({t.data_ptr() for t in tensors if t is not None})
        return real(call, *tensors, **options)

    monkeypatch.setattr(layer_norm.launch, "launch", noting)
    norm = LIKE_LAYER_NORM[name]
    ours, theirs = norm.functions((cols,))
    x = part(5, cols, gap, device, dtype).requires_grad_()
    inputs = [x, *norm.inputs((5, cols), (cols,), dtype, device)[1:]]
    dy = torch.randn(5, cols, device=device, dtype=dtype)
    assert_agrees(ours, theirs, inputs, dy)
    held = cols not in (IN_TILES, HALVES, WIDE)  # the backward copies wider rows
    assert len([pointers for pointers in read if x.data_ptr() in pointers]) >= 1 + held, "x was copied"
    if gap == 16 and cols % 8 == 0:
        dense = [x.detach().contiguous().requires_grad_(), *inputs[1:]]
        for apart, beside in zip(run(ours, inputs, dy), run(ours, dense, dy), strict=True):
            assert torch.equal(apart, beside), "bits depend on where rows lie"


FORMS = {
    "a chunk of a projection": lambda x: x.repeat(1, 1, 1, 3).chunk(3, -1)[1],
    "expanded rows": lambda x: x[:, :1, :1].expand(x.shape),
    "an expanded row": lambda x: x[:1, :1, :1].expand(x.shape),
    "every other row": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "rows not in one piece": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "the first of two": lambda x: x.repeat(1, 2, 1, 1)[:, : x.shape[1]],
    "one row": lambda x: x.repeat(1, 1, 1, 2)[:1, :1, :1, : x.shape[3]],
}


@pytest.mark.parametrize("form", FORMS)
@every_norm
def test_forms(device, name, form):
    """Those whose rows are equally far apart, and those that are copied."""
    norm = LIKE_LAYER_NORM[name]
    ours, theirs = norm.functions((64,))
    x = FORMS[form](torch.randn(2, 3, 4, 64, device=device)).requires_grad_()
    inputs = [x, *norm.inputs((64,), (64,), torch.float32, device)[1:]]
    assert_agrees(lambda *t: ours(*t).contiguous(), lambda *t: theirs(*t).contiguous(), inputs)


@every_norm
def test_rows_of_two_dimensions(device, name):
    """They are in one piece, and further apart than they are long."""
    norm = LIKE_LAYER_NORM[name]
    ours, theirs = norm.functions((6, 8))
    x = torch.randn(2, 3, 9, 8, device=device)[:, :, 1:7].requires_grad_()
    assert_agrees(ours, theirs, [x, *norm.inputs(x.shape, (6, 8), torch.float32, device)[1:]])
