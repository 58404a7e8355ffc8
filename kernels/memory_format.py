"""How tensors lie in memory, in rows, contiguous or channels-last, and tensors made to match them."""

import functools
import itertools
import math
from typing import NamedTuple

import torch
from torch._prims_common import suggest_memory_format

from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.tiling.heads import Heads


class Layout(NamedTuple):
    """How a tensor that `dense` returned lies in memory: one that is channels-last as one sample."""

    samples: int
    channels: int
    spatial: int
    channels_last: bool


def layout(shape: torch.Size, contiguous: bool) -> Layout:
    samples, channels, spatial = shape[0], shape[1], shape[2:].numel()
    if spatial == 1 or not contiguous:
        return Layout(1, channels, samples * spatial, True)
    return Layout(samples, channels, spatial, False)


def contiguous(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """The tensors, None kept, with their elements in logical order."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def in_rows(x: torch.Tensor, cols: int) -> torch.Tensor:
    """x as [rows, cols], each row in one piece: a view where rows are equally far apart, else a copy."""
    rows = x.reshape(-1, cols)
    return rows if cols == 1 or rows.stride(1) == 1 else rows.contiguous()


def dense_heads_like(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """An empty tensor without gaps, in x's order of dimensions where the last one is the innermost."""
    y = torch.empty_like(x, dtype=dtype)
    return y if y.stride(-1) == 1 else y.new_empty(x.shape)


def in_order(shape: torch.Size, order: tuple[int, ...]) -> list[int]:
    """The dimensions but the last, and those of 1, from the outermost to the innermost by these strides."""
    return sorted((d for d, size in enumerate(shape[:-1]) if size != 1), key=lambda d: -order[d])


@functools.lru_cache(4096)
def heads_in(
    shape: torch.Size, strides: tuple[int, ...], order: tuple[int, ...], group: int | None
) -> Heads | None:
    """Where the rows of the last dimension lie; None where they have more strides than two.

    order: strides by which dimensions are ordered, those of a tensor without gaps.
    group: how many heads are to be taken for those of a token; None: as many as may be.
    """
    if strides[-1] != 1 and shape[-1] != 1:
        return None
    dims = in_order(shape, order)
    gaps = [o + 1 for o, (d, e) in enumerate(itertools.pairwise(dims)) if strides[d] != shape[e] * strides[e]]
    if len(gaps) > 1:
        return None
    sizes = [shape[d] for d in dims]
    heads = math.prod(sizes[gaps[0] :]) if gaps else group or (sizes[-1] if sizes else 1)
    if group not in (None, heads):
        return None
    stride_head = strides[dims[-1]] if dims else shape[-1]
    stride_token = strides[dims[gaps[0] - 1]] if gaps else heads * stride_head
    return Heads(shape[:-1].numel(), heads, stride_token, stride_head)


def heads_of(x: torch.Tensor, like: torch.Tensor, group: int | None = None) -> tuple[torch.Tensor, Heads]:
    """x, or a copy of it with the strides of `like`, and where its rows lie in the order of `like`."""
    heads = heads_in(x.shape, x.stride(), like.stride(), group)
    if heads is None:
        x = torch.empty_like(like, dtype=x.dtype).copy_(x)
        heads = heads_in(x.shape, x.stride(), like.stride(), group)
        assert heads is not None
    return x, heads


def without_gaps(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """t, or a copy of it, whose rows lie one after another in the order of `like`."""
    heads = heads_in(t.shape, t.stride(), like.stride(), None)
    if heads and heads.stride_head == t.shape[-1] and heads.stride_token == heads.heads * heads.stride_head:
        return t
    return torch.empty_like(like, dtype=t.dtype).copy_(t)


@functools.lru_cache(4096)
def repeats_in(shape: torch.Size, order: tuple[int, ...], smaller: torch.Size) -> tuple[int, int] | None:
    """(group, period): a contiguous tensor that broadcasts to the shape has its row at row // group % period.

    None where no two such numbers say which. The rows of the shape are numbered by the order.
    """
    smaller = torch.Size((1,) * (len(shape) - len(smaller)) + smaller)
    dims = in_order(shape, order)
    own = [place for place, d in enumerate(dims) if smaller[d] != 1]
    if not own:
        return max(1, shape[:-1].numel()), 1
    first, last = own[0], own[-1]
    of_own = [dims[place] for place in own]
    if own != [*range(first, last + 1)] or of_own != sorted(of_own):
        return None
    return math.prod(shape[d] for d in dims[last + 1 :]), math.prod(shape[d] for d in of_own)


CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by dimensions


def dense(x: torch.Tensor) -> torch.Tensor:
    """x, or a copy of it in the memory format torch gives the result: contiguous or channels-last."""
    if x.is_contiguous():
        return x
    # before asking for a format, which the stride of a dimension of size 1 decides
    last = CHANNELS_LAST.get(x.dim())
    if last is not None and x.is_contiguous(memory_format=last):
        return x
    return x.contiguous(memory_format=suggest_memory_format(x))


def in_format_of(x: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, of x's shape, or a copy of it with x's strides."""
    return tensor if tensor.stride() == x.stride() else torch.empty_like(x, dtype=tensor.dtype).copy_(tensor)


def bits_like(x: torch.Tensor) -> torch.Tensor:
    """Empty bytes with a bit for each element of x as `dense` returns it, whole bytes a contiguous row."""
    samples, channels, spatial, channels_last = layout(x.shape, x.is_contiguous())
    shape = (samples * spatial, channels) if channels_last else (samples, channels, spatial)
    return torch.empty((*shape[:-1], (shape[-1] + 7) // 8), dtype=torch.int8, device=x.device)


def flags_of(bits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A bool for each element of x, of bits that are like it."""
    _, channels, spatial, channels_last = layout(x.shape, dense(x).is_contiguous())
    flags = (bits[..., None] >> torch.arange(8, device=bits.device)) & 1
    flags = flags.flatten(-2)[..., : channels if channels_last else spatial].bool()
    if channels_last:
        return flags.view(x.movedim(1, -1).shape).movedim(-1, 1)
    return flags.view(x.shape)


def channel_values(x: torch.Tensor) -> torch.Tensor:
    """An empty float64 for each channel of x."""
    return torch.empty(x.shape[1], dtype=torch.float64, device=x.device)


def partial_values(x: torch.Tensor, kinds: int, splits: int) -> torch.Tensor:
    """Empty partial results of the splits of each channel of x, in the dtype of arithmetic."""
    return torch.empty((kinds, splits, x.shape[1]), dtype=compute_dtype(x.dtype), device=x.device)
