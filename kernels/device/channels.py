"""Which channels and positions a program works on, for tensors (N, C, *) in either memory format.

A channel's elements are cut into tiles [channels, positions], the positions being some of one sample's or
all of a few samples', and the tiles into splits. Program (i, j) of the grid takes the i-th block of channels
and the tiles of the j-th split. A channels-last tensor is one sample of batch * spatial positions whose
channels are contiguous: other strides, same kernels.

What there is one of a channel and program (mean, rstd, partial results) is float64.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch._prims_common import suggest_memory_format

from normreg.kernels import dtypes, launch, tiling
from normreg.kernels.device.statistics import merge_moments, merge_partials


@triton.jit
def program_channels(
    samples, channels, spatial, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
    REVERSED: tl.constexpr = False,
):  # fmt: skip
    """This program's channels, their mask, and the sizes for `tile_access`, in elements.

    REVERSED: the last program of the launch before is the first one of this.
    """
    if CHANNELS_LAST:
        channels = channels * VECTOR
        stride_channel = 1
        stride_spatial = channels
    else:
        spatial = spatial * VECTOR
        stride_channel = spatial
        stride_spatial = 1
    block = tl.program_id(0)
    if REVERSED:
        block = tl.num_programs(0) - 1 - block
    channel = block * BLOCK[1] + tl.arange(0, BLOCK[1])
    return channel, channel < channels, (samples, channels, spatial, stride_channel, stride_spatial, block)


@triton.jit
def program_tiles(tiles, tiles_per_split, REVERSED: tl.constexpr = False):
    """First and past-the-last tile of this program's split."""
    split = tl.program_id(1)
    if REVERSED:
        split = tl.num_programs(1) - 1 - split
    first = split * tiles_per_split
    return first, tl.minimum(first + tiles_per_split, tiles)


@triton.jit
def tile_access(tile, sizes, BLOCK: tl.constexpr):
    """(base, offsets, mask) of this program's channels at a tile, and how many positions it has."""
    samples, channels, spatial, stride_channel, stride_spatial, block = sizes
    BLOCK_SAMPLES: tl.constexpr = BLOCK[0]
    BLOCK_SPATIAL: tl.constexpr = BLOCK[2]
    tiles_per_sample = tl.cdiv(spatial, BLOCK_SPATIAL)
    first_sample = (tile // tiles_per_sample).to(tl.int64) * BLOCK_SAMPLES
    first_channel = block.to(tl.int64) * BLOCK[1]
    first_spatial = (tile % tiles_per_sample).to(tl.int64) * BLOCK_SPATIAL
    base = first_sample * channels * spatial + first_channel * stride_channel + first_spatial * stride_spatial

    channel = tl.arange(0, BLOCK[1])[:, None]
    position = tl.arange(0, BLOCK_SAMPLES * BLOCK_SPATIAL)[None, :]
    mask = first_channel + channel < channels
    offsets = channel * stride_channel
    if BLOCK_SAMPLES > 1:
        sample = position // BLOCK_SPATIAL
        position = position % BLOCK_SPATIAL
        mask &= first_sample + sample < samples
        offsets += sample * channels * spatial
    mask &= first_spatial + position < spatial
    offsets += position * stride_spatial
    positions = tl.minimum(samples - first_sample, BLOCK_SAMPLES)
    positions *= tl.minimum(spatial - first_spatial, BLOCK_SPATIAL)
    return (base, offsets, mask), positions


@triton.jit
def load_tile(ptr, access, DTYPE: tl.constexpr):
    base, offsets, mask = access
    return tl.load(ptr + base + offsets, mask=mask, other=0.0).to(DTYPE)


@triton.jit
def store_tile(ptr, access, value):
    base, offsets, mask = access
    tl.store(ptr + base + offsets, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def bits_access(tile, sizes, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    """`tile_access` of the bytes that hold a bit for each element, eight contiguous ones a byte."""
    samples, channels, spatial, _, _, block = sizes
    if CHANNELS_LAST:
        channels = tl.cdiv(channels, 8)
        sizes = (samples, channels, spatial, 1, channels, block)
        access, _ = tile_access(tile, sizes, (BLOCK[0], (BLOCK[1] + 7) // 8, BLOCK[2]))
    else:
        spatial = tl.cdiv(spatial, 8)
        sizes = (samples, channels, spatial, spatial, 1, block)
        access, _ = tile_access(tile, sizes, (BLOCK[0], BLOCK[1], (BLOCK[2] + 7) // 8))
    return access


@triton.jit
def store_bits(ptr, flags, tile, sizes, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    """A bit for each of flags [channels, positions]."""
    CHANNELS: tl.constexpr = BLOCK[1]
    POSITIONS: tl.constexpr = BLOCK[0] * BLOCK[2]
    bits = flags.to(tl.int32)
    if CHANNELS_LAST:
        A_BYTE: tl.constexpr = min(8, CHANNELS)
        place = tl.arange(0, A_BYTE)[None, :, None]
        bits = tl.sum(tl.reshape(bits, (CHANNELS // A_BYTE, A_BYTE, POSITIONS)) << place, 1)
    else:
        A_BYTE: tl.constexpr = min(8, BLOCK[2])
        place = tl.arange(0, A_BYTE)[None, None, :]
        bits = tl.sum(tl.reshape(bits, (CHANNELS, POSITIONS // A_BYTE, A_BYTE)) << place, 2)
    store_tile(ptr, bits_access(tile, sizes, CHANNELS_LAST, BLOCK), bits)


@triton.jit
def load_bits(ptr, tile, sizes, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    """The flags [channels, positions] that `store_bits` has stored, whatever its tiles were."""
    CHANNELS: tl.constexpr = BLOCK[1]
    POSITIONS: tl.constexpr = BLOCK[0] * BLOCK[2]
    bits = load_tile(ptr, bits_access(tile, sizes, CHANNELS_LAST, BLOCK), tl.int32)
    if CHANNELS_LAST:
        A_BYTE: tl.constexpr = min(8, CHANNELS)
        bits = bits[:, None, :] >> tl.arange(0, A_BYTE)[None, :, None]
    else:
        A_BYTE: tl.constexpr = min(8, BLOCK[2])
        bits = bits[:, :, None] >> tl.arange(0, A_BYTE)[None, None, :]
    return tl.reshape(bits & 1, (CHANNELS, POSITIONS)) != 0


@triton.jit
def load_channels(ptr, offset, mask, DEFAULT: tl.constexpr = 0.0):
    """A float64 for each channel, DEFAULT where the tensor is absent."""
    if ptr is None:
        return tl.full(offset.shape, DEFAULT, tl.float64)
    else:
        return tl.load(ptr + offset, mask=mask, other=0.0).to(tl.float64)


@triton.jit
def store_channels(ptr, channel, value, mask):
    """Stores a float64 for each channel in the tensor's own dtype."""
    if ptr.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)  # the interpreter cannot cast float64 to bfloat16
    tl.store(ptr + channel, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def update_running(running_ptr, value, momentum, channel, mask):
    """running = (1 - momentum) running + momentum value"""
    running = (1 - momentum) * load_channels(running_ptr, channel, mask) + momentum * value
    store_channels(running_ptr, channel, running, mask)


@triton.jit
def store_statistics(
    mean_ptr, var_ptr,                    # [channels] or None: what the backward needs
    running_mean_ptr, running_var_ptr,    # [channels] or None
    mean, m2, count, momentum, channel, mask,
):  # fmt: skip
    if mean_ptr is not None:
        store_channels(mean_ptr, channel, mean, mask)
        store_channels(var_ptr, channel, m2 / count, mask)
    if running_mean_ptr is not None:
        update_running(running_mean_ptr, mean, momentum, channel, mask)
        update_running(running_var_ptr, m2 / (count - 1), momentum, channel, mask)


@triton.jit
def load_partials(ptr, kind, first, channel, mask, splits, channels, BLOCK_SPLITS: tl.constexpr):
    """The partial results of one kind and BLOCK_SPLITS splits, of [kinds, splits, channels]."""
    split = first + tl.arange(0, BLOCK_SPLITS)[:, None]
    offsets = (kind * splits + split).to(tl.int64) * channels + channel[None, :]
    return tl.load(ptr + offsets, mask=(split < splits) & mask[None, :], other=0.0)


@triton.jit
def sum_partials(ptr, kind, channel, mask, splits, channels, BLOCK_SPLITS: tl.constexpr):
    """The sum over the splits, for each channel, in the same order every time."""
    total = tl.zeros(channel.shape, tl.float64)
    for first in range(0, splits, BLOCK_SPLITS):
        partial = load_partials(ptr, kind, first, channel, mask, splits, channels, BLOCK_SPLITS)
        total += tl.sum(partial, 0)
    return total


@triton.jit
def merged_moments(ptr, channel, mask, splits, channels, BLOCK_SPLITS: tl.constexpr):
    """Count, mean and m2 of each channel, of [count, mean and m2, splits, channels]."""
    count = tl.zeros(channel.shape, tl.float64)
    mean = tl.zeros(channel.shape, tl.float64)
    m2 = tl.zeros(channel.shape, tl.float64)
    for first in range(0, splits, BLOCK_SPLITS):
        counts, means, m2s = merge_partials(
            load_partials(ptr, 0, first, channel, mask, splits, channels, BLOCK_SPLITS),
            load_partials(ptr, 1, first, channel, mask, splits, channels, BLOCK_SPLITS),
            load_partials(ptr, 2, first, channel, mask, splits, channels, BLOCK_SPLITS),
        )
        count, mean, m2 = merge_moments(count, mean, m2, counts, means, m2s)
    return count, mean, m2


@triton.jit
def store_partial(ptr, kind, value, channel, mask, channels):
    """This program's partial result of one kind, into [kinds, splits, channels]."""
    row = (kind * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    tl.store(ptr + row * channels + channel, value, mask=mask)


class Plan(NamedTuple):
    """How the launches of one call cut x up."""

    grid: tuple  # channel blocks, splits
    sizes: tuple  # samples; channels and spatial, the contiguous one in vectors; tiles, tiles_per_split
    constants: dict
    merged_splits: int
    count: int  # elements of a channel


class Layout(NamedTuple):
    """How x, as `dense` returns it, lies in memory: channels-last as one sample."""

    samples: int
    channels: int
    spatial: int
    channels_last: bool

    def sizes_and_constants(self, dtype, tile):
        """The sizes, the contiguous one in vectors, and what the kernels are compiled for."""
        vector = tiling.hardware.vector(self.channels if self.channels_last else self.spatial)
        channels, spatial = self.channels, self.spatial
        in_vectors = (channels // vector, spatial) if self.channels_last else (channels, spatial // vector)
        return (self.samples, *in_vectors), dict(
            COMPUTE_DTYPE=dtypes.triton_dtype(dtypes.compute_dtype(dtype)),
            CHANNELS_LAST=self.channels_last,
            VECTOR=vector,
            BLOCK_SAMPLES=tile.samples,
            BLOCK_CHANNELS=tile.channels,
            BLOCK_SPATIAL=tile.spatial,
            num_warps=tile.num_warps,
        )


def layout(x):
    samples, channels, spatial = x.shape[0], x.shape[1], x.shape[2:].numel()
    if spatial == 1 or not x.is_contiguous():
        return Layout(1, channels, samples * spatial, True)
    return Layout(samples, channels, spatial, False)


@launch.planned
def _plan(layout, dtype, device, split):
    samples, channels, spatial, channels_last = layout
    tile = tiling.channels.batch_norm_tile(channels, spatial, channels_last)
    tiles = triton.cdiv(samples, tile.samples) * triton.cdiv(spatial, tile.spatial)
    channel_blocks = triton.cdiv(channels, tile.channels)
    splits, tiles_per_split = split(tiles, tile.samples * tile.spatial, channel_blocks, device)
    sizes, constants = layout.sizes_and_constants(dtype, tile)
    return Plan(
        grid=(channel_blocks, splits),
        sizes=(*sizes, tiles, tiles_per_split),
        constants=constants,
        merged_splits=tiling.channels.batch_norm_merged_splits(tile.channels),
        count=samples * spatial,
    )


def plan(x, split=tiling.channels.batch_norm_splits):
    """The plan for x as `dense` returns it."""
    return _plan(layout(x), x.dtype, x.device, split)


@launch.planned
def _held_plan(layout, dtype, tile_name, *details):
    tile = getattr(tiling.channels, tile_name)(*layout, dtypes.compute_dtype(dtype), *details)
    if tile is None:
        return None
    return (triton.cdiv(layout.channels, tile.channels),), *layout.sizes_and_constants(dtype, tile)


def held_plan(x, tile_name, *details):
    """(grid, sizes, constants) for one tile a program, or None where a channel is too large for it.

    tile_name: of the function of `launch` that chooses the tile.
    """
    return _held_plan(layout(x), x.dtype, tile_name, *details)


def dense(x):
    """x, or a copy of it in the memory format torch gives the result: contiguous or channels-last."""
    return x if x.is_contiguous() else x.contiguous(memory_format=suggest_memory_format(x))


def in_format_of(x, tensor):
    """The tensor, of x's shape, or a copy of it with x's strides."""
    return tensor if tensor.stride() == x.stride() else torch.empty_like(x, dtype=tensor.dtype).copy_(tensor)


def bits_like(x):
    """Empty bytes with a bit for each element of x as `dense` returns it, whole bytes a contiguous row."""
    samples, channels, spatial, channels_last = layout(x)
    shape = (samples * spatial, channels) if channels_last else (samples, channels, spatial)
    return torch.empty((*shape[:-1], (shape[-1] + 7) // 8), dtype=torch.int8, device=x.device)


def flags_of(bits, x):
    """A bool for each element of x."""
    _, channels, spatial, channels_last = layout(dense(x))
    flags = (bits[..., None] >> torch.arange(8, device=bits.device)) & 1
    flags = flags.flatten(-2)[..., : channels if channels_last else spatial].bool()
    if channels_last:
        return flags.view(x.movedim(1, -1).shape).movedim(-1, 1)
    return flags.view(x.shape)


def channel_values(x, *leading):
    """An empty float64 for each channel of x, and for each index of the leading dimensions."""
    return torch.empty((*leading, x.shape[1]), dtype=torch.float64, device=x.device)
