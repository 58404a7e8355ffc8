"""GroupNorm of groups cut into splits, with the formula and the names of `group_norm`.

The moments of a group are those of a channel of BatchNorm, of x as [1, samples groups, elements]. What
follows goes over x as [1, samples channels, spatial], whose rows have one weight, bias, mean and rstd each. A
row is cut into splits, too: every launch fills a GPU, however few groups and rows there are.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from normreg.kernels import tiling
from normreg.kernels.batch_norm.splits import statistics as moments
from normreg.kernels.device.channel_moments import merged_moments
from normreg.kernels.device.channels import (
    Elements,
    ElementsBackward,
    PerChannel,
    load_tile,
    program_channels,
    program_tiles,
    store_tile,
    tile_access,
)
from normreg.kernels.device.normalize import load_affine, normalize_tiles
from normreg.kernels.device.per_channel import (
    load_channels,
    store_partial,
    sum_partials,
)
from normreg.kernels.device.rows import load_mean, load_spread, store_statistics
from normreg.kernels.device.statistics import compute_dtype, divide, exact_std, std_of
from normreg.kernels.memory_format import partial_values
from normreg.kernels.partition import Partition, in_splits


class PerGroup(NamedTuple):
    """Tensors of the groups of all samples; None where absent."""

    statistics: Any = None  # [groups, 3]
    c1: Any = None  # [groups]
    c2: Any = None


@triton.jit(
    do_not_specialize=[
        "samples",
        "rows",
        "spatial",
        "tiles",
        "tiles_per_split",
        "splits",
        "group_channels",
        "channels",
    ]
)
def group_norm_normalize_kernel(
    elements: Elements,  # x, y: [rows, spatial]
    partial_ptr,  # [count, high, low and m2, splits, groups]
    per_channel: PerChannel,  # weight, bias or None
    statistics_ptr,  # [groups, 3] or None
    samples,
    rows,
    spatial,
    tiles,
    tiles_per_split,
    splits,
    group_channels,
    channels,
    eps: tl.float64,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    program = program_channels(samples, rows, spatial, TILE)
    row, row_mask = program.channel, program.mask
    group = row // group_channels
    groups = program.channels // group_channels
    count = group_channels.to(tl.int64) * program.spatial
    mean, m2 = merged_moments(partial_ptr, group, row_mask, splits, groups, count, TILE.partials)
    var = divide(m2, count)
    if tl.program_id(1) == 0:
        store_statistics(statistics_ptr, mean, var, group, row_mask & (row % group_channels == 0))

    affine = load_affine(per_channel, mean, exact_std(var, eps), row % channels, row_mask, DTYPE)
    span = program_tiles(tiles, tiles_per_split)
    normalize_tiles(elements, affine, program, span, 0.0, None, TILE)


@triton.jit(do_not_specialize=["samples", "rows", "spatial", "tiles", "tiles_per_split", "group_channels"])
def group_norm_backward_sums_kernel(
    elements: ElementsBackward,  # dy, x: [rows, spatial]
    statistics_ptr,  # [groups, 3]
    partial_ptr,  # [dbias and dweight, splits, rows]
    samples,
    rows,
    spatial,
    tiles,
    tiles_per_split,
    group_channels,
    eps: tl.float64,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    ROWS: tl.constexpr = TILE.channels
    POSITIONS: tl.constexpr = TILE.samples * TILE.spatial
    program = program_channels(samples, rows, spatial, TILE)
    row, row_mask = program.channel, program.mask
    rows = program.channels
    mean = load_mean(statistics_ptr, row // group_channels, row_mask)
    var = load_spread(statistics_ptr, row // group_channels, row_mask)
    dbias = tl.zeros([ROWS, POSITIONS], DTYPE)
    dweight = tl.zeros([ROWS, POSITIONS], DTYPE)
    first_tile, last_tile = program_tiles(tiles, tiles_per_split)
    for tile in range(first_tile, last_tile):
        access = tile_access(tile, program, TILE)
        dy = load_tile(elements.dy, access, DTYPE)
        x = load_tile(elements.x, access, DTYPE)
        dbias += dy
        dweight += dy * (x - mean.high[:, None])  # dy is 0 where there is no element

    dbias = tl.sum(dbias, 1)
    dweight = divide(tl.sum(dweight, 1) - mean.low * dbias, std_of(var, eps))
    store_partial(partial_ptr, 0, dbias, row, row_mask, rows)
    store_partial(partial_ptr, 1, dweight, row, row_mask, rows)


@triton.jit(do_not_specialize=["rows", "splits", "group_channels", "channels", "spatial"])
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


@triton.jit(
    do_not_specialize=["samples", "rows", "spatial", "tiles", "tiles_per_split", "group_channels", "channels"]
)
def group_norm_backward_input_kernel(
    elements: ElementsBackward,  # dy, x, dx: [rows, spatial]
    weight_ptr,  # [channels] or None
    per_group: PerGroup,  # statistics, c1, c2
    samples,
    rows,
    spatial,
    tiles,
    tiles_per_split,
    group_channels,
    channels,
    eps: tl.float64,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    program = program_channels(samples, rows, spatial, TILE)
    row, row_mask = program.channel, program.mask
    group = row // group_channels
    mean = load_mean(per_group.statistics, group, row_mask)
    std = std_of(load_spread(per_group.statistics, group, row_mask), eps)
    scale = divide(load_channels(weight_ptr, row % channels, row_mask, DTYPE, 1.0), std)
    # dx = dy scale - (x - high) c1 - c2
    c1 = divide(tl.load(per_group.c1 + group, mask=row_mask, other=0.0), std * std)
    c2 = divide(tl.load(per_group.c2 + group, mask=row_mask, other=0.0), std) - mean.low * c1
    first_tile, last_tile = program_tiles(tiles, tiles_per_split)
    for tile in range(first_tile, last_tile):
        access = tile_access(tile, program, TILE)
        dy = load_tile(elements.dy, access, DTYPE)
        d = load_tile(elements.x, access, DTYPE) - mean.high[:, None]
        store_tile(elements.dx, access, dy * scale[:, None] - (d * c1[:, None] + c2[:, None]))


def forward(
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    statistics: torch.Tensor | None,
    groups: int,
    eps: float,
) -> None:
    """Fills y, and statistics where they are given; x is contiguous."""
    samples, channels = x.shape[:2]
    whole = x.view(1, samples * groups, -1)
    partial = moments(whole, in_splits(whole, tiling.groups.group_norm_splits))
    partition = in_splits(x.view(1, samples * channels, -1))
    tensors = *Elements(x, y), partial, *PerChannel(weight, bias), statistics
    numbers = partial.shape[1], channels // groups, channels, eps
    partition.launch(group_norm_normalize_kernel, tensors, *numbers)


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    dx: torch.Tensor | None,
    weight: torch.Tensor | None,
    statistics: torch.Tensor,
    dweight_partial: torch.Tensor | None,
    dbias_partial: torch.Tensor | None,
    groups: int,
    eps: float,
) -> None:
    """Fills those of dx and of the partial sums of each sample that are given; dy and x are contiguous."""
    samples, channels = x.shape[:2]
    group_channels = channels // groups
    rows = x.view(1, samples * channels, -1)
    partition = in_splits(rows)
    partial = partial_values(rows, 2, partition.splits)
    tensors = *ElementsBackward(x, dy), statistics, partial
    partition.launch(group_norm_backward_sums_kernel, tensors, group_channels, eps)

    c1, c2 = (torch.empty(samples * groups, dtype=partial.dtype, device=x.device) for _ in range(2))
    tile = tiling.groups.group_norm_merge_tile()
    sizes = rows.shape[1], partition.splits, group_channels, channels, rows.shape[2]
    constants = dict(BLOCK=(tile.rows, tile.cols), num_warps=tile.num_warps)
    merge = Partition(x.device, (samples * groups,), sizes, constants)
    tensors = partial, weight, dweight_partial, dbias_partial, *PerGroup(c1=c1, c2=c2)
    merge.launch(group_norm_backward_merge_kernel, tensors)

    if dx is not None:
        tensors = *ElementsBackward(x, dy, dx), weight, *PerGroup(statistics, c1, c2)
        partition.launch(group_norm_backward_input_kernel, tensors, group_channels, channels, eps)
