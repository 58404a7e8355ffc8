"""GroupNorm of groups cut into splits, with the formula and the names of `group_norm`.

The moments of a group are those of a channel of BatchNorm, of x as [1, samples groups, elements]. What
follows goes over x as [1, samples channels, spatial], whose rows have one weight, bias, mean and rstd each. A
row is cut into splits, too: every launch fills a GPU, however few groups and rows there are.

Channels-last, x is [samples, spatial, channels], cut into blocks of neighbouring channels whatever the size
of a group: what is added up in splits is of rows (samples, channels), and one more small launch merges the
splits and rows of each group. Merged by every program that needs them, they would be read from the cache as
often as x.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from normreg.kernels import tiling
from normreg.kernels.batch_norm.splits import statistics as moments
from normreg.kernels.device.channel_moments import fours, merged_group_moments, merged_moments
from normreg.kernels.device.channels import (
    Elements,
    ElementsBackward,
    PerChannel,
    program_rows,
    store_tile,
    tile_access,
)
from normreg.kernels.device.normalize import load_affine, load_dz, normalize_tiles
from normreg.kernels.device.per_channel import (
    load_channels,
    store_partial,
    sum_partials,
)
from normreg.kernels.device.rows import load_mean, load_spread, store_statistics
from normreg.kernels.device.statistics import compute_dtype, divide, exact_std
from normreg.kernels.memory_format import partial_values
from normreg.kernels.partition import Partition, in_splits, in_splits_of_samples

SIZES = ["samples", "rows", "spatial", "tiles", "tiles_per_split", "splits", "group_channels", "channels"]


class PerGroup(NamedTuple):
    """Tensors of the groups of all samples; None where absent."""

    statistics: Any = None  # [groups, 3]
    c1: Any = None  # [groups]
    c2: Any = None
    partial: Any = None  # [count, high, low and m2, splits, groups]


@triton.jit(do_not_specialize=SIZES)
def group_norm_merge_kernel(
    partial_ptr,  # [count, high, low and m2, splits, rows]
    statistics_ptr,  # [groups, 3]
    rows,
    splits,
    group_channels,
    spatial,
    BLOCK: tl.constexpr,  # splits, channels
):
    group = tl.program_id(0)
    count = group_channels.to(tl.int64) * spatial
    first_row = group * group_channels
    mean, m2 = merged_group_moments(partial_ptr, first_row, group_channels, splits, rows, count, BLOCK)
    store_statistics(statistics_ptr, mean, divide(m2, count), group.to(tl.int64), True)


@triton.jit(do_not_specialize=SIZES)
def group_norm_normalize_kernel(
    elements: Elements,  # x, y: [rows, spatial]
    per_group: PerGroup,  # statistics or None; partial results to merge, or None where the former are there
    per_channel: PerChannel,  # weight, bias or None
    samples,
    rows,
    spatial,
    tiles,
    tiles_per_split,
    splits,
    group_channels,
    channels,
    eps: tl.float64,
    negative_slope: tl.float64,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    program, row, rows, span = program_rows(samples, rows, spatial, tiles, tiles_per_split, TILE)
    row_mask = program.mask
    group = row // group_channels
    if per_group.partial is None:
        mean = load_mean(per_group.statistics, group, row_mask)
        var = load_spread(per_group.statistics, group, row_mask)
    else:
        groups = rows // group_channels
        count = group_channels.to(tl.int64) * program.spatial
        mean, m2 = merged_moments(per_group.partial, group, row_mask, splits, groups, count, TILE.partials)
        var = divide(m2, count)
        if tl.program_id(1) == 0:
            first_of_group = row_mask & (row % group_channels == 0)
            store_statistics(per_group.statistics, mean, var, group, first_of_group)

    affine = load_affine(per_channel, mean, exact_std(var, eps), row % channels, row_mask, DTYPE)
    normalize_tiles(elements, affine, program, span, negative_slope, ACT, TILE)


@triton.jit(do_not_specialize=SIZES)
def group_norm_backward_sums_kernel(
    elements: ElementsBackward,  # dy, x: [rows, spatial]
    per_channel: PerChannel,  # weight, bias or None; used where there is an activation
    statistics_ptr,  # [groups, 3]
    partial_ptr,  # [dbias and dweight, splits, rows]
    samples,
    rows,
    spatial,
    tiles,
    tiles_per_split,
    group_channels,
    channels,
    eps: tl.float64,
    negative_slope: tl.float64,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    ROWS: tl.constexpr = TILE.channels
    POSITIONS: tl.constexpr = TILE.samples * TILE.spatial
    program, row, rows, span = program_rows(samples, rows, spatial, tiles, tiles_per_split, TILE)
    row_mask = program.mask
    mean = load_mean(statistics_ptr, row // group_channels, row_mask)
    std = exact_std(load_spread(statistics_ptr, row // group_channels, row_mask), eps)
    affine = load_affine(per_channel, mean, std, row % channels, row_mask, DTYPE)
    dbias = fours(tl.zeros([ROWS, POSITIONS], DTYPE), TILE)
    dweight = tl.zeros_like(dbias)
    first_tile, last_tile = span
    for tile in range(first_tile, last_tile):
        access = tile_access(tile, program, TILE)
        dz, deviation = load_dz(elements, affine, access, program, negative_slope, ACT, TILE)
        dbias += fours(dz, TILE)
        dweight += fours(dz * deviation, TILE)  # dz is 0 where there is no element

    dbias = tl.sum(dbias, 1)
    dweight = divide(tl.sum(dweight, 1) - mean.low * dbias, std.value)
    store_partial(partial_ptr, 0, dbias, row, row_mask, rows)
    store_partial(partial_ptr, 1, dweight, row, row_mask, rows)


@triton.jit(do_not_specialize=SIZES)
def group_norm_backward_merge_kernel(
    partial_ptr,  # [dbias and dweight, splits, rows]
    weight_ptr,  # [channels] or None
    dweight_partial_ptr,  # [samples, channels], which is [rows], or None
    dbias_partial_ptr,
    per_group: PerGroup,  # c1, c2
    rows,
    splits,
    group_channels,
    channels,
    spatial,
    BLOCK: tl.constexpr,  # splits, channels
):
    SPLITS: tl.constexpr = BLOCK[0]
    CHANNELS: tl.constexpr = BLOCK[1]
    group = tl.program_id(0)
    DTYPE: tl.constexpr = partial_ptr.dtype.element_ty
    c1 = tl.zeros([CHANNELS], DTYPE)
    c2 = tl.zeros([CHANNELS], DTYPE)
    for first in range(0, group_channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        mask = channel < group_channels
        row = group * group_channels + channel
        dbias, dweight = sum_partials(partial_ptr, row, mask, splits, rows, SPLITS)
        if dbias_partial_ptr is not None:
            tl.store(dbias_partial_ptr + row, dbias, mask=mask)
        if dweight_partial_ptr is not None:
            tl.store(dweight_partial_ptr + row, dweight, mask=mask)
        weight = load_channels(weight_ptr, row % channels, mask, DTYPE, 1.0)
        c1 += dweight * weight
        c2 += dbias * weight
    elements = group_channels.to(tl.int64) * spatial
    tl.store(per_group.c1 + group, divide(tl.sum(c1, 0), elements))
    tl.store(per_group.c2 + group, divide(tl.sum(c2, 0), elements))


@triton.jit(do_not_specialize=SIZES)
def group_norm_backward_input_kernel(
    elements: ElementsBackward,  # dy, x, dx: [rows, spatial]
    per_channel: PerChannel,  # weight, bias or None
    per_group: PerGroup,  # statistics, c1, c2
    samples,
    rows,
    spatial,
    tiles,
    tiles_per_split,
    group_channels,
    channels,
    eps: tl.float64,
    negative_slope: tl.float64,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    program, row, _, span = program_rows(samples, rows, spatial, tiles, tiles_per_split, TILE)
    row_mask = program.mask
    group = row // group_channels
    mean = load_mean(per_group.statistics, group, row_mask)
    exact = exact_std(load_spread(per_group.statistics, group, row_mask), eps)
    std = exact.value
    affine = load_affine(per_channel, mean, exact, row % channels, row_mask, DTYPE)
    # dx = dz scale - (x - high) c1 - c2
    c1 = divide(tl.load(per_group.c1 + group, mask=row_mask, other=0.0), std * std)
    c2 = divide(tl.load(per_group.c2 + group, mask=row_mask, other=0.0), std) - mean.low * c1
    first_tile, last_tile = span
    for tile in range(first_tile, last_tile):
        access = tile_access(tile, program, TILE)
        dz, d = load_dz(elements, affine, access, program, negative_slope, ACT, TILE)
        store_tile(elements.dx, access, dz * affine.scale - (d * c1[:, None] + c2[:, None]))


def merge_of_groups(rows: int, group_channels: int, device: torch.device, *sizes: int) -> Partition:
    """What the launches have in common that merge the splits and the rows of a group, a program each."""
    tile = tiling.groups.group_norm_merge_tile(group_channels)
    constants = dict(BLOCK=(tile.rows, tile.cols), num_warps=tile.num_warps)
    return Partition(device, (rows // group_channels,), (rows, *sizes), constants)


def rows_in_splits(x: torch.Tensor) -> Partition:
    """The rows (samples, channels) of x, contiguous or channels-last."""
    if x.is_contiguous():
        return in_splits(x.view(1, x.shape[0] * x.shape[1], -1))
    return in_splits_of_samples(x)


def forward(
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    statistics: torch.Tensor | None,
    groups: int,
    eps: float,
    act: str | None,
    negative_slope: float,
) -> None:
    """Fills y, and statistics where they are given; x is contiguous or channels-last."""
    samples, channels = x.shape[:2]
    rows, group_channels = samples * channels, channels // groups
    partition = rows_in_splits(x)
    if x.is_contiguous():
        whole = x.view(1, samples * groups, -1)
        partial = moments(whole, in_splits(whole, tiling.groups.group_norm_splits, groups))
        per_group = PerGroup(statistics, partial=partial)
    else:
        partial = moments(x, partition, rows=rows)
        if statistics is None:
            statistics = partial.new_empty(samples * groups, 3)
        sizes = partition.splits, group_channels, x.shape[2:].numel()
        merge = merge_of_groups(rows, group_channels, x.device, *sizes)
        merge.launch(group_norm_merge_kernel, (partial, statistics))
        per_group = PerGroup(statistics)
    tensors = *Elements(x, y), *per_group, *PerChannel(weight, bias)
    numbers = partial.shape[1], group_channels, channels, eps, negative_slope
    partition.launch(group_norm_normalize_kernel, tensors, *numbers, ACT=act)


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    dx: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    statistics: torch.Tensor,
    dweight_partial: torch.Tensor | None,
    dbias_partial: torch.Tensor | None,
    groups: int,
    eps: float,
    act: str | None,
    negative_slope: float,
) -> None:
    """Fills those of dx and of the partial sums of each sample that are given; dy has x's strides."""
    samples, channels = x.shape[:2]
    rows, group_channels = samples * channels, channels // groups
    num_warps = tiling.groups.group_norm_backward_split_warps(x.dtype.itemsize, act)
    partition = rows_in_splits(x).in_warps(num_warps)
    partial = partial_values(x, 2, partition.splits, rows)
    numbers = group_channels, channels, eps, negative_slope
    of_act = PerChannel() if act is None else PerChannel(weight, bias)
    tensors = *ElementsBackward(x, dy), *of_act, statistics, partial
    partition.launch(group_norm_backward_sums_kernel, tensors, *numbers, ACT=act)

    c1, c2 = (torch.empty(samples * groups, dtype=partial.dtype, device=x.device) for _ in range(2))
    sizes = partition.splits, group_channels, channels, x.shape[2:].numel()
    merge = merge_of_groups(rows, group_channels, x.device, *sizes)
    tensors = partial, weight, dweight_partial, dbias_partial, *PerGroup(c1=c1, c2=c2)
    merge.launch(group_norm_backward_merge_kernel, tensors)

    if dx is not None:
        tensors = *ElementsBackward(x, dy, dx), *of_act._replace(weight=weight), *PerGroup(statistics, c1, c2)
        partition.launch(group_norm_backward_input_kernel, tensors, *numbers, ACT=act)
