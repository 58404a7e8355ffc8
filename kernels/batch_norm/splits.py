"""BatchNorm of channels cut into splits: two launches, the second merging what the first has summed.

The formulas are in `batch_norm`. Each program sums over its split of a channel and leaves a partial result a
channel. Each program of the second launch merges those of its channels, in a fixed order, and goes over its
tiles again, from the last to the first: what was touched last may still be in the cache.
"""

import torch
import triton
import triton.language as tl

from normreg.kernels.device.channel_moments import merged_moments, split_moments
from normreg.kernels.device.channels import (
    Elements,
    ElementsBackward,
    PerChannel,
    PerChannelBackward,
    program_channels,
    program_rows,
    program_tiles,
    store_tile,
    tile_access,
)
from normreg.kernels.device.normalize import load_affine, load_dz, normalize_tiles, projections
from normreg.kernels.device.per_channel import (
    average_factor,
    count_batch,
    load_channels,
    load_mean,
    store_gradients,
    store_partial,
    store_statistics,
    sum_partials,
)
from normreg.kernels.device.statistics import compute_dtype, divide, exact_std
from normreg.kernels.memory_format import partial_values
from normreg.kernels.partition import Partition, in_splits


@triton.jit(do_not_specialize=["samples", "channels", "spatial", "tiles", "tiles_per_split"])
def batch_norm_statistics_kernel(
    x_ptr,
    partial_ptr,  # [count, high, low and m2, splits, rows]: of channels, or of those of each sample
    num_batches_tracked_ptr,  # scalar or None
    samples,
    channels,
    spatial,
    tiles,
    tiles_per_split,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty)
    program, row, rows, span = program_rows(samples, channels, spatial, tiles, tiles_per_split, TILE)
    count, mean, m2 = split_moments(x_ptr, program, span, DTYPE, TILE)
    store_partial(partial_ptr, 0, tl.zeros_like(m2) + count, row, program.mask, rows)
    store_partial(partial_ptr, 1, mean.high, row, program.mask, rows)
    store_partial(partial_ptr, 2, mean.low, row, program.mask, rows)
    store_partial(partial_ptr, 3, m2, row, program.mask, rows)
    count_batch(num_batches_tracked_ptr, tl.program_id(0) + tl.program_id(1))


@triton.jit(
    do_not_specialize=["samples", "channels", "spatial", "tiles", "tiles_per_split", "splits", "count"]
)
def batch_norm_normalize_kernel(
    elements: Elements,  # x, y; residual, bits or None
    partial_ptr,  # [count, high, low and m2, splits, channels]
    per_channel: PerChannel,  # num_batches_tracked where the average is cumulative
    samples,
    channels,
    spatial,
    tiles,
    tiles_per_split,
    splits,
    count,
    momentum: tl.float64,
    eps: tl.float64,
    negative_slope: tl.float64,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    program = program_channels(samples, channels, spatial, TILE, REVERSED=True)
    channel, channel_mask = program.channel, program.mask
    mean, m2 = merged_moments(
        partial_ptr, channel, channel_mask, splits, program.channels, count, TILE.partials
    )
    std = exact_std(divide(m2, count), eps)
    if tl.program_id(1) == 0:
        factor = average_factor(momentum, per_channel.num_batches_tracked)
        store_statistics(per_channel, mean, m2, count, factor, channel, channel_mask)

    affine = load_affine(per_channel, mean, std, channel, channel_mask, DTYPE)
    span = program_tiles(tiles, tiles_per_split, REVERSED=True)
    normalize_tiles(elements, affine, program, span, negative_slope, ACT, TILE)


@triton.jit(do_not_specialize=["samples", "channels", "spatial", "tiles", "tiles_per_split"])
def batch_norm_backward_sums_kernel(
    elements: ElementsBackward,  # dx in inference, where it needs no sums
    per_channel: PerChannelBackward,  # mean, var; weight, bias or None
    partial_ptr,  # [dbias and dweight std, splits, channels] or None
    samples,
    channels,
    spatial,
    tiles,
    tiles_per_split,
    eps: tl.float64,
    negative_slope: tl.float64,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    CHANNELS: tl.constexpr = TILE.channels
    POSITIONS: tl.constexpr = TILE.samples * TILE.spatial
    program = program_channels(samples, channels, spatial, TILE)
    channel, channel_mask = program.channel, program.mask
    mean = load_mean(per_channel.mean, channel, channel_mask, DTYPE)
    std = exact_std(load_channels(per_channel.var, channel, channel_mask, DTYPE), eps)
    affine = load_affine(per_channel, mean, std, channel, channel_mask, DTYPE)

    dbias = tl.zeros([CHANNELS, POSITIONS], DTYPE)
    dweight = tl.zeros([CHANNELS, POSITIONS], DTYPE)
    first_tile, last_tile = program_tiles(tiles, tiles_per_split)
    for tile in range(first_tile, last_tile):
        access = tile_access(tile, program, TILE)
        dz, deviation = load_dz(elements, affine, access, program, negative_slope, ACT, TILE)
        dbias += dz
        dweight += dz * deviation
        if elements.dresidual is not None:
            store_tile(elements.dresidual, access, dz)
        if elements.dx is not None:
            store_tile(elements.dx, access, dz * affine.scale)

    if partial_ptr is not None:
        dbias = tl.sum(dbias, 1)
        dweight = tl.sum(dweight, 1) - mean.low * dbias
        store_partial(partial_ptr, 0, dbias, channel, channel_mask, program.channels)
        store_partial(partial_ptr, 1, dweight, channel, channel_mask, program.channels)


@triton.jit(
    do_not_specialize=["samples", "channels", "spatial", "tiles", "tiles_per_split", "splits", "count"]
)
def batch_norm_backward_kernel(
    elements: ElementsBackward,  # dy, x; residual, bits or None, and in training dx or None
    partial_ptr,  # [dbias and dweight std, splits, channels]
    per_channel: PerChannelBackward,  # mean, var; weight, bias, dweight, dbias or None
    samples,
    channels,
    spatial,
    tiles,
    tiles_per_split,
    splits,
    count,
    eps: tl.float64,
    negative_slope: tl.float64,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    program = program_channels(samples, channels, spatial, TILE, REVERSED=True)
    channel, channel_mask = program.channel, program.mask
    channels = program.channels
    mean = load_mean(per_channel.mean, channel, channel_mask, DTYPE)
    std = exact_std(load_channels(per_channel.var, channel, channel_mask, DTYPE), eps)
    dbias, dweight = sum_partials(partial_ptr, channel, channel_mask, splits, channels, TILE.partials)
    dweight = divide(dweight, std.value)
    if tl.program_id(1) == 0:
        store_gradients(per_channel, dweight, dbias, channel, channel_mask)

    if elements.dx is not None:
        affine = load_affine(per_channel, mean, std, channel, channel_mask, DTYPE)
        c1, c2 = projections(dweight, dbias, mean, std, count)
        first_tile, last_tile = program_tiles(tiles, tiles_per_split, REVERSED=True)
        for back in range(first_tile, last_tile):
            tile = first_tile + last_tile - 1 - back
            access = tile_access(tile, program, TILE)
            dz, deviation = load_dz(elements, affine, access, program, negative_slope, ACT, TILE)
            store_tile(elements.dx, access, (dz - (deviation * c1 + c2)) * affine.scale)


def statistics(
    x: torch.Tensor,
    partition: Partition,
    num_batches_tracked: torch.Tensor | None = None,
    rows: int | None = None,
) -> torch.Tensor:
    """Count, high, low and m2 of each split of x; counts the batch where the count is given.

    rows: how many have statistics of their own, where these are not x's channels.
    """
    partial = partial_values(x, 4, partition.splits, rows)
    partition.launch(batch_norm_statistics_kernel, (x, partial, num_batches_tracked))
    return partial


def forward(
    elements: Elements,
    per_channel: PerChannel,
    momentum: float | None,
    eps: float,
    act: str | None,
    negative_slope: float,
) -> None:
    """Fills y and those of mean and var that are given, and updates the running statistics."""
    partition = in_splits(elements.x)
    partial = statistics(elements.x, partition, per_channel.num_batches_tracked)
    if momentum is None:
        momentum = 0.0  # the count of batches stands for it
    else:
        per_channel = per_channel._replace(num_batches_tracked=None)
    tensors = *elements, partial, *per_channel
    count = elements.x.numel() // elements.x.shape[1]
    numbers = partition.splits, count, momentum, eps, negative_slope
    partition.launch(batch_norm_normalize_kernel, tensors, *numbers, ACT=act)


def backward_sums(
    elements: ElementsBackward,
    per_channel: PerChannelBackward,
    partition: Partition,
    partial: torch.Tensor | None,
    eps: float,
    act: str | None,
    negative_slope: float,
) -> None:
    """Fills `partial` and those of dresidual and, in inference, dx that are given."""
    tensors = *elements, *per_channel._replace(dweight=None, dbias=None), partial
    partition.launch(batch_norm_backward_sums_kernel, tensors, eps, negative_slope, ACT=act)


def backward_of_sums(
    elements: ElementsBackward,
    per_channel: PerChannelBackward,
    partition: Partition,
    partial: torch.Tensor,
    count: int,
    eps: float,
    act: str | None,
    negative_slope: float,
) -> None:
    """Fills those of dx, in training, dweight and dbias that are given, of sums over `count` elements.

    Where the first launch has left dz as dresidual, that is read instead of dy.
    """
    if elements.dresidual is not None:
        act, elements = None, ElementsBackward(elements.x, elements.dresidual, elements.dx)
    if elements.dx is None:
        partition = partition._replace(grid=(partition.grid[0], 1))
    tensors = *elements, partial, *per_channel
    numbers = partial.shape[1], count, eps, negative_slope
    partition.launch(batch_norm_backward_kernel, tensors, *numbers, ACT=act)


def backward(
    elements: ElementsBackward,
    per_channel: PerChannelBackward,
    training: bool,
    eps: float,
    act: str | None,
    negative_slope: float,
) -> None:
    """Fills those of dx, dweight, dbias and dresidual that are given."""
    x, dx = elements.x, elements.dx
    partition = in_splits(x)
    of_sums = (per_channel.dweight, per_channel.dbias, dx if training else None)
    partial = None
    if any(tensor is not None for tensor in of_sums):
        partial = partial_values(x, 2, partition.splits)
    without_dx, numbers = elements._replace(dx=None), (eps, act, negative_slope)
    first, second = (without_dx, elements) if training else (elements, without_dx)
    backward_sums(first, per_channel, partition, partial, *numbers)
    if partial is not None:
        backward_of_sums(second, per_channel, partition, partial, x.numel() // x.shape[1], *numbers)
