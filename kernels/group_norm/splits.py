"""Group normalisation of groups too large to be held, with the formula and the names of `group_norm`.

The moments of a group are those of a channel of `batch_norm`, of x as [1, samples groups, elements]. What
follows goes over x as [1, samples channels, spatial], whose rows have one weight, bias, mean and rstd each.
A row, too, is cut into splits (`channels`): every launch fills a GPU whatever there is one of.
"""

import torch
import triton
import triton.language as tl

from normreg.kernels import launch, tiling
from normreg.kernels.batch_norm.splits import batch_norm_statistics_kernel, normalize_tiles
from normreg.kernels.device.channels import (
    channel_values,
    load_channels,
    load_tile,
    merged_moments,
    plan,
    program_channels,
    program_tiles,
    store_partial,
    store_tile,
    sum_partials,
    tile_access,
)
from normreg.kernels.device.statistics import rstd_of


@triton.jit
def load_row_statistics(
    x_ptr, mean_ptr, var_ptr, row, row_mask, group_channels, spatial, DTYPE: tl.constexpr
):
    """shift and mean of each row's group, [rows, 1], and its var [rows]."""
    group = row // group_channels
    first = group.to(tl.int64) * group_channels * spatial
    shift = tl.load(x_ptr + first, mask=row_mask, other=0.0).to(DTYPE)
    mean = tl.load(mean_ptr + group, mask=row_mask, other=0.0)
    var = tl.load(var_ptr + group, mask=row_mask, other=0.0)
    return shift[:, None], mean[:, None], var


@triton.jit(
    do_not_specialize=[
        "samples", "rows", "spatial", "tiles", "tiles_per_split", "splits", "group_channels", "channels",
    ]
)  # fmt: skip
def group_norm_normalize_kernel(
    x_ptr, y_ptr,                # [rows, spatial]
    partial_ptr,                 # [count, mean and m2, splits, groups]
    weight_ptr, bias_ptr,        # [channels] or None
    mean_ptr, var_ptr,           # [groups] or None
    samples, rows, spatial, tiles, tiles_per_split, splits, group_channels, channels,
    eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = (BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL)
    row, row_mask, sizes = program_channels(samples, rows, spatial, CHANNELS_LAST, VECTOR, BLOCK)
    rows, stride_row = sizes[1], sizes[3]
    group = row // group_channels
    count, mean, m2 = merged_moments(
        partial_ptr, group, row_mask, splits, rows // group_channels, BLOCK_SPLITS
    )
    var = m2 / count
    rstd = rstd_of(var, eps)
    if mean_ptr is not None:
        first = row_mask & (row % group_channels == 0)
        if tl.program_id(1) == 0:
            shift = load_channels(x_ptr, row.to(tl.int64) * stride_row, first)
            tl.store(mean_ptr + group, (mean - shift).to(COMPUTE_DTYPE), mask=first)
            tl.store(var_ptr + group, var.to(COMPUTE_DTYPE), mask=first)

    normalize_tiles(
        x_ptr, y_ptr, weight_ptr, bias_ptr, None, None, mean, rstd, row % channels, row_mask,
        sizes, tiles, tiles_per_split, 0.0, COMPUTE_DTYPE, CHANNELS_LAST, BLOCK, None,
    )  # fmt: skip


@triton.jit(do_not_specialize=["samples", "rows", "spatial", "tiles", "tiles_per_split", "group_channels"])
def group_norm_backward_sums_kernel(
    dy_ptr, x_ptr,               # [rows, spatial]
    mean_ptr, var_ptr,           # [groups]
    partial_ptr,                 # [dbias and dweight, splits, rows]
    samples, rows, spatial, tiles, tiles_per_split, group_channels,
    eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = (BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL)
    row, row_mask, sizes = program_channels(samples, rows, spatial, CHANNELS_LAST, VECTOR, BLOCK)
    rows, spatial = sizes[1], sizes[2]
    shift, mean, var = load_row_statistics(
        x_ptr, mean_ptr, var_ptr, row, row_mask, group_channels, spatial, COMPUTE_DTYPE
    )
    dbias = tl.zeros([BLOCK_CHANNELS, BLOCK_SAMPLES * BLOCK_SPATIAL], COMPUTE_DTYPE)
    dweight = tl.zeros([BLOCK_CHANNELS, BLOCK_SAMPLES * BLOCK_SPATIAL], COMPUTE_DTYPE)
    first_tile, last_tile = program_tiles(tiles, tiles_per_split)
    for tile in range(first_tile, last_tile):
        access, _ = tile_access(tile, sizes, BLOCK)
        dy = load_tile(dy_ptr, access, COMPUTE_DTYPE)
        x = load_tile(x_ptr, access, COMPUTE_DTYPE)
        dbias += dy
        dweight += dy * (x - shift - mean)  # dy is 0 where there is no element

    dweight = tl.sum(dweight, 1) * rstd_of(var, eps)
    store_partial(partial_ptr, 0, tl.sum(dbias, 1).to(tl.float64), row, row_mask, rows)
    store_partial(partial_ptr, 1, dweight.to(tl.float64), row, row_mask, rows)


@triton.jit(do_not_specialize=["rows", "splits", "group_channels", "channels", "spatial"])
def group_norm_backward_merge_kernel(
    partial_ptr,                                  # [dbias and dweight, splits, rows]
    weight_ptr,                                   # [channels] or None
    dweight_partial_ptr, dbias_partial_ptr,       # [samples, channels], which is [rows], or None
    c1_ptr, c2_ptr,                               # [groups]
    rows, splits, group_channels, channels, spatial,
    BLOCK_SPLITS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0)
    c1 = tl.zeros([BLOCK_CHANNELS], tl.float64)
    c2 = tl.zeros([BLOCK_CHANNELS], tl.float64)
    for first in range(0, group_channels, BLOCK_CHANNELS):
        channel = first + tl.arange(0, BLOCK_CHANNELS)
        mask = channel < group_channels
        row = group * group_channels + channel
        dbias = sum_partials(partial_ptr, 0, row, mask, splits, rows, BLOCK_SPLITS)
        dweight = sum_partials(partial_ptr, 1, row, mask, splits, rows, BLOCK_SPLITS)
        if dbias_partial_ptr is not None:
            tl.store(dbias_partial_ptr + row, dbias.to(dbias_partial_ptr.dtype.element_ty), mask=mask)
        if dweight_partial_ptr is not None:
            tl.store(dweight_partial_ptr + row, dweight.to(dweight_partial_ptr.dtype.element_ty), mask=mask)
        weight = load_channels(weight_ptr, row % channels, mask, 1.0)
        c1 += dweight * weight
        c2 += dbias * weight
    elements = group_channels.to(tl.float64) * spatial
    tl.store(c1_ptr + group, (tl.sum(c1, 0) / elements).to(c1_ptr.dtype.element_ty))
    tl.store(c2_ptr + group, (tl.sum(c2, 0) / elements).to(c2_ptr.dtype.element_ty))


@triton.jit(
    do_not_specialize=["samples", "rows", "spatial", "tiles", "tiles_per_split", "group_channels", "channels"]
)
def group_norm_backward_input_kernel(
    dy_ptr, x_ptr, dx_ptr,               # [rows, spatial]
    weight_ptr,                          # [channels] or None
    mean_ptr, var_ptr, c1_ptr, c2_ptr,   # [groups]
    samples, rows, spatial, tiles, tiles_per_split, group_channels, channels,
    eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = (BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL)
    row, row_mask, sizes = program_channels(samples, rows, spatial, CHANNELS_LAST, VECTOR, BLOCK)
    rows, spatial = sizes[1], sizes[2]
    shift, mean, var = load_row_statistics(
        x_ptr, mean_ptr, var_ptr, row, row_mask, group_channels, spatial, COMPUTE_DTYPE
    )
    rstd = rstd_of(var, eps)[:, None]
    weight = load_channels(weight_ptr, row % channels, row_mask, 1.0).to(COMPUTE_DTYPE)[:, None]
    c1 = tl.load(c1_ptr + row // group_channels, mask=row_mask, other=0.0)[:, None]
    c2 = tl.load(c2_ptr + row // group_channels, mask=row_mask, other=0.0)[:, None]
    first_tile, last_tile = program_tiles(tiles, tiles_per_split)
    for tile in range(first_tile, last_tile):
        access, _ = tile_access(tile, sizes, BLOCK)
        dy = load_tile(dy_ptr, access, COMPUTE_DTYPE)
        x = load_tile(x_ptr, access, COMPUTE_DTYPE)
        x_hat = (x - shift - mean) * rstd
        dx = (weight * dy - x_hat * c1 - c2) * rstd
        store_tile(dx_ptr, access, dx)


def forward(x, y, weight, bias, mean, var, groups, eps):
    """Fills y, and mean and var where they are given; x is contiguous."""
    samples, channels = x.shape[:2]
    whole = x.view(1, samples * groups, -1)
    grid, sizes, constants, _, _ = plan(whole, tiling.groups.group_norm_splits)
    splits = grid[1]
    partial = channel_values(whole, 3, splits)
    statistics = launch.kept_launch(batch_norm_statistics_kernel, grid, x.device, *sizes, **constants)
    launch.launch(statistics, x, partial, None)
    grid, sizes, constants, merged_splits, _ = plan(x.view(1, samples * channels, -1))
    normalize = launch.kept_launch(
        group_norm_normalize_kernel, grid, x.device, *sizes, splits, channels // groups, channels, eps,
        BLOCK_SPLITS=merged_splits, **constants,
    )  # fmt: skip
    launch.launch(normalize, x, y, partial, weight, bias, mean, var)


def backward(dy, x, dx, weight, mean, var, dweight_partial, dbias_partial, groups, eps):
    """Fills those of dx and of the partial sums of each sample that are given; dy and x are contiguous."""
    samples, channels = x.shape[:2]
    group_channels, device = channels // groups, x.device
    rows = x.view(1, samples * channels, -1)
    grid, sizes, constants, _, _ = plan(rows)
    partial = channel_values(rows, 2, grid[1])
    sums = launch.kept_launch(
        group_norm_backward_sums_kernel, grid, device, *sizes, group_channels, eps, **constants
    )
    launch.launch(sums, dy, x, mean, var, partial)
    c1, c2 = (torch.empty(samples * groups, dtype=mean.dtype, device=device) for _ in range(2))
    tile = tiling.groups.group_norm_merge_tile()
    merge = launch.kept_launch(
        group_norm_backward_merge_kernel, (samples * groups,), device,
        rows.shape[1], grid[1], group_channels, channels, rows.shape[2],
        BLOCK_SPLITS=tile.rows, BLOCK_CHANNELS=tile.cols, num_warps=tile.num_warps,
    )  # fmt: skip
    launch.launch(merge, partial, weight, dweight_partial, dbias_partial, c1, c2)
    if dx is not None:
        of_dx = launch.kept_launch(
            group_norm_backward_input_kernel, grid, device, *sizes, group_channels, channels, eps, **constants
        )
        launch.launch(of_dx, dy, x, dx, weight, mean, var, c1, c2)
