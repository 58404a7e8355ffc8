"""How the heads of tokens lie in memory: read where they are, or copied where they have too many strides."""

import functools
import itertools
import math

import torch

from normreg.kernels.tiling.heads import Heads


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
