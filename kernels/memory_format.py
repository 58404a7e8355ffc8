"""How tensors lie in memory, in rows, contiguous or channels-last, and tensors made to match them."""

import itertools
import math
from typing import NamedTuple

import torch
from torch._prims_common import suggest_memory_format

from normreg.kernels.dtypes import compute_dtype


class Layout(NamedTuple):
    """How a tensor that `dense` returned lies in memory: one that is channels-last as one sample."""

    samples: int
    channels: int
    spatial: int
    channels_last: bool


def layout(shape: torch.Size, contiguous: bool) -> Layout:
    samples, channels, spatial = shape[0], shape[1], math.prod(shape[2:])
    if spatial == 1 or not contiguous:
        return Layout(1, channels, samples * spatial, True)
    return Layout(samples, channels, spatial, False)


def contiguous(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """The tensors, None kept, with their elements in logical order."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def in_rows(x: torch.Tensor, *sizes: int) -> torch.Tensor:
    """x as [rows, *sizes], the last in one piece: a view where rows are equally far apart, else a copy."""
    rows = x.reshape(-1, *sizes)
    return rows if sizes[-1] == 1 or rows.stride(-1) == 1 else rows.contiguous()


def is_in_rows(x: torch.Tensor) -> bool:
    """Whether rows of the last dimension are equally far apart."""
    if x.is_contiguous():
        return True
    sizes = [(size, stride) for size, stride in zip(x.shape[:-1], x.stride()) if size > 1]
    return all(outer == size * inner for (_, outer), (size, inner) in itertools.pairwise(sizes))


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether torch takes x for channels-last, and not for contiguous."""
    return not x.is_contiguous() and suggest_memory_format(x) is not torch.contiguous_format


CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by dimensions


def is_dense(x: torch.Tensor) -> bool:
    """Whether x is contiguous or channels-last."""
    if x.is_contiguous():
        return True
    last = CHANNELS_LAST.get(x.dim())
    return last is not None and x.is_contiguous(memory_format=last)


def dense(x: torch.Tensor) -> torch.Tensor:
    """x, or a copy of it in the memory format torch gives the result: contiguous or channels-last."""
    # before asking for a format, which the stride of a dimension of size 1 decides
    return x if is_dense(x) else x.contiguous(memory_format=suggest_memory_format(x))


def in_format_of(x: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, of x's shape, or a copy of it that lies in memory as x does."""
    if tensor.stride() == x.stride() or (tensor.is_contiguous() and x.is_contiguous()):
        return tensor
    return torch.empty_like(x, dtype=tensor.dtype).copy_(tensor)


def empty_in_format_of(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An empty tensor like x, as `dense` returns it, with torch's strides of its memory format."""
    memory_format = torch.contiguous_format if x.is_contiguous() else torch.preserve_format
    return torch.empty_like(x, dtype=dtype, memory_format=memory_format)


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


def bits_of(flags: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Bits like x, of a bool for each of its elements."""
    samples, channels, spatial, channels_last = layout(x.shape, dense(x).is_contiguous())
    if channels_last:
        rows = flags.movedim(1, -1).reshape(samples * spatial, channels)
    else:
        rows = flags.reshape(samples, channels, spatial)
    beyond = -rows.shape[-1] % 8
    rows = torch.constant_pad_nd(rows.to(torch.int32), (0, beyond))
    rows = rows.view(*rows.shape[:-1], rows.shape[-1] // 8, 8)
    return (rows << torch.arange(8, device=rows.device)).sum(-1).to(torch.int8)


def channel_values(x: torch.Tensor) -> torch.Tensor:
    """An empty float64 for each channel of x."""
    return torch.empty(x.shape[1], dtype=torch.float64, device=x.device)


def partial_values(x: torch.Tensor, kinds: int, splits: int, rows: int | None = None) -> torch.Tensor:
    """Empty partial results of the splits of each channel of x or of rows, in the dtype of arithmetic."""
    size = kinds, splits, x.shape[1] if rows is None else rows
    return torch.empty(size, dtype=compute_dtype(x.dtype), device=x.device)
