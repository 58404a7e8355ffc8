"""Batch normalisation of each channel over the batch and the spatial positions.

    n = batch spatial, sums over one channel
    training:   mean = sum(x) / n,  var = sum((x - mean)^2) / n,  and the running statistics become
                running_mean = (1 - momentum) running_mean + momentum mean
                running_var = (1 - momentum) running_var + momentum var n / (n - 1)
    inference:  mean = running_mean,  var = running_var
    rstd = 1 / sqrt(var + eps),  x_hat = (x - mean) rstd,  y = x_hat weight + bias

    dbias = sum(dy)              training:   dx = (dy - x_hat dweight / n - dbias / n) weight rstd
    dweight = sum(dy x_hat)      inference:  dx = dy weight rstd

A channel that can be held in registers is read once, in one launch (`batch_norm_held`). A larger one is cut
into splits (`channels`), one program each. A first launch leaves a partial result a split and channel. Each
program of the second merges those of its channels, in a fixed order, and goes over its tiles again.

Elements are computed with in float32, relative to a value among them. A channel's mean is float64: float32
would round a mean of 10^6 by a thirtieth of a standard deviation of 1, and so move every x_hat of the
channel in the same direction.
"""

import torch
import triton
import triton.language as tl

from . import batch_norm_held, launch
from .channels import (
    channel_values,
    dense,
    held_plan,
    load_channels,
    merged_moments,
    plan,
    program_channels,
    program_tiles,
    store_channels,
    store_partial,
    store_statistics,
    sum_partials,
    tile_access,
)
from .statistics import merge_moments, moments, recentred, subtract


@triton.jit(do_not_specialize=["samples", "channels", "spatial", "tiles", "tiles_per_split"])
def batch_norm_statistics_kernel(
    x_ptr,
    partial_ptr,                 # [count, mean and m2, splits, channels]
    num_batches_tracked_ptr,     # scalar or None
    samples, channels, spatial, tiles, tiles_per_split,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    channel, channel_mask, channels, spatial, stride_channel, stride_spatial = program_channels(
        channels, spatial, CHANNELS_LAST, VECTOR, BLOCK_CHANNELS
    )
    shift = load_channels(x_ptr, channel.to(tl.int64) * stride_channel, channel_mask).to(COMPUTE_DTYPE)

    count = tl.full([], 0.0, COMPUTE_DTYPE)
    mean = tl.zeros_like(shift)
    m2 = tl.zeros_like(shift)
    first_tile, last_tile = program_tiles(tiles, tiles_per_split)
    for tile in range(first_tile, last_tile):
        base, offsets, mask, positions = tile_access(
            tile, samples, channels, spatial, stride_channel, stride_spatial,
            BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL,
        )  # fmt: skip
        x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        positions = positions.to(COMPUTE_DTYPE)
        if tile == first_tile:
            shift = recentred(shift, x, mask, positions)
        tile_mean, tile_m2 = moments(x - shift[:, None], mask, positions, 1)
        count, mean, m2 = merge_moments(count, mean, m2, positions, tile_mean, tile_m2)

    mean = shift.to(tl.float64) + mean.to(tl.float64)
    store_partial(partial_ptr, 0, tl.zeros_like(mean) + count, channel, channel_mask, channels)
    store_partial(partial_ptr, 1, mean, channel, channel_mask, channels)
    store_partial(partial_ptr, 2, m2.to(tl.float64), channel, channel_mask, channels)
    if num_batches_tracked_ptr is not None:
        if tl.program_id(0) + tl.program_id(1) == 0:
            tl.store(num_batches_tracked_ptr, tl.load(num_batches_tracked_ptr) + 1)


@triton.jit
def normalize_tiles(
    x_ptr, y_ptr, weight_ptr, bias_ptr, mean, rstd, channel, channel_mask,
    samples, channels, spatial, stride_channel, stride_spatial, tiles, tiles_per_split,
    COMPUTE_DTYPE: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    """y = (x - mean) rstd weight + bias over the tiles of this program's split."""
    scale = (rstd * load_channels(weight_ptr, channel, channel_mask, 1.0)).to(COMPUTE_DTYPE)[:, None]
    bias = load_channels(bias_ptr, channel, channel_mask).to(COMPUTE_DTYPE)[:, None]
    first_tile, last_tile = program_tiles(tiles, tiles_per_split)
    for tile in range(first_tile, last_tile):
        base, offsets, mask, _ = tile_access(
            tile, samples, channels, spatial, stride_channel, stride_spatial,
            BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL,
        )  # fmt: skip
        x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        y = subtract(x, mean) * scale + bias
        tl.store(y_ptr + base + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["samples", "channels", "spatial", "tiles", "tiles_per_split", "splits"])
def batch_norm_normalize_kernel(
    x_ptr, y_ptr,
    partial_ptr,                          # [count, mean and m2, splits, channels]
    weight_ptr, bias_ptr,                 # [channels] or None
    running_mean_ptr, running_var_ptr,    # [channels] or None
    num_batches_tracked_ptr,              # scalar, for the cumulative average that replaces momentum, or None
    mean_ptr, var_ptr,                    # [channels] or None
    samples, channels, spatial, tiles, tiles_per_split, splits,
    momentum: tl.float64, eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    channel, channel_mask, channels, spatial, stride_channel, stride_spatial = program_channels(
        channels, spatial, CHANNELS_LAST, VECTOR, BLOCK_CHANNELS
    )
    count, mean, m2 = merged_moments(partial_ptr, channel, channel_mask, splits, channels, BLOCK_SPLITS)
    rstd = tl.rsqrt(m2 / count + tl.full([], eps, tl.float64))

    if tl.program_id(1) == 0:
        factor = tl.full([], momentum, tl.float64)
        if num_batches_tracked_ptr is not None:
            factor = 1 / tl.load(num_batches_tracked_ptr).to(tl.float64)
        store_statistics(
            mean_ptr, var_ptr, running_mean_ptr, running_var_ptr,
            mean, m2, count, factor, channel, channel_mask,
        )  # fmt: skip

    normalize_tiles(
        x_ptr, y_ptr, weight_ptr, bias_ptr, mean, rstd, channel, channel_mask,
        samples, channels, spatial, stride_channel, stride_spatial, tiles, tiles_per_split,
        COMPUTE_DTYPE, BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL,
    )  # fmt: skip


@triton.jit(do_not_specialize=["samples", "channels", "spatial", "tiles", "tiles_per_split"])
def batch_norm_inference_kernel(
    x_ptr, y_ptr,
    weight_ptr, bias_ptr,                 # [channels] or None
    running_mean_ptr, running_var_ptr,    # [channels]
    mean_ptr, var_ptr,                    # [channels] or None
    samples, channels, spatial, tiles, tiles_per_split,
    eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    channel, channel_mask, channels, spatial, stride_channel, stride_spatial = program_channels(
        channels, spatial, CHANNELS_LAST, VECTOR, BLOCK_CHANNELS
    )
    mean = load_channels(running_mean_ptr, channel, channel_mask)
    var = load_channels(running_var_ptr, channel, channel_mask)
    rstd = tl.rsqrt(var + tl.full([], eps, tl.float64))
    if mean_ptr is not None:
        if tl.program_id(1) == 0:
            store_channels(mean_ptr, channel, mean, channel_mask)
            store_channels(var_ptr, channel, var, channel_mask)

    normalize_tiles(
        x_ptr, y_ptr, weight_ptr, bias_ptr, mean, rstd, channel, channel_mask,
        samples, channels, spatial, stride_channel, stride_spatial, tiles, tiles_per_split,
        COMPUTE_DTYPE, BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL,
    )  # fmt: skip


@triton.jit(do_not_specialize=["samples", "channels", "spatial", "tiles", "tiles_per_split"])
def batch_norm_backward_sums_kernel(
    dy_ptr, x_ptr,
    mean_ptr,                    # [channels]
    partial_ptr,                 # [dbias and dweight / rstd, splits, channels]
    samples, channels, spatial, tiles, tiles_per_split,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    channel, channel_mask, channels, spatial, stride_channel, stride_spatial = program_channels(
        channels, spatial, CHANNELS_LAST, VECTOR, BLOCK_CHANNELS
    )
    mean = load_channels(mean_ptr, channel, channel_mask)

    dbias = tl.zeros([BLOCK_CHANNELS, BLOCK_SAMPLES * BLOCK_SPATIAL], COMPUTE_DTYPE)
    dweight = tl.zeros([BLOCK_CHANNELS, BLOCK_SAMPLES * BLOCK_SPATIAL], COMPUTE_DTYPE)
    first_tile, last_tile = program_tiles(tiles, tiles_per_split)
    for tile in range(first_tile, last_tile):
        base, offsets, mask, _ = tile_access(
            tile, samples, channels, spatial, stride_channel, stride_spatial,
            BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL,
        )  # fmt: skip
        dy = tl.load(dy_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        dbias += dy
        dweight += dy * subtract(x, mean)  # dy is 0 where there is no element

    store_partial(partial_ptr, 0, tl.sum(dbias, 1).to(tl.float64), channel, channel_mask, channels)
    store_partial(partial_ptr, 1, tl.sum(dweight, 1).to(tl.float64), channel, channel_mask, channels)


@triton.jit(
    do_not_specialize=["samples", "channels", "spatial", "tiles", "tiles_per_split", "splits", "count"]
)
def batch_norm_backward_kernel(
    dy_ptr, x_ptr, dx_ptr,       # dx or None
    weight_ptr,                  # [channels] or None
    mean_ptr, var_ptr,           # [channels]
    partial_ptr,                 # [dbias and dweight / rstd, splits, channels] or None
    dweight_ptr, dbias_ptr,      # [channels] or None
    samples, channels, spatial, tiles, tiles_per_split, splits, count,
    eps: tl.float64,
    TRAINING: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    channel, channel_mask, channels, spatial, stride_channel, stride_spatial = program_channels(
        channels, spatial, CHANNELS_LAST, VECTOR, BLOCK_CHANNELS
    )
    var = load_channels(var_ptr, channel, channel_mask)
    rstd = tl.rsqrt(var + tl.full([], eps, tl.float64))
    if partial_ptr is not None:
        dbias = sum_partials(partial_ptr, 0, channel, channel_mask, splits, channels, BLOCK_SPLITS)
        dweight = sum_partials(partial_ptr, 1, channel, channel_mask, splits, channels, BLOCK_SPLITS) * rstd
        if tl.program_id(1) == 0:
            if dbias_ptr is not None:
                store_channels(dbias_ptr, channel, dbias, channel_mask)
            if dweight_ptr is not None:
                store_channels(dweight_ptr, channel, dweight, channel_mask)

    if dx_ptr is not None:
        mean = load_channels(mean_ptr, channel, channel_mask)
        scale = (rstd * load_channels(weight_ptr, channel, channel_mask, 1.0)).to(COMPUTE_DTYPE)[:, None]
        if TRAINING:
            c1 = (dweight * rstd / count).to(COMPUTE_DTYPE)[:, None]
            c2 = (dbias / count).to(COMPUTE_DTYPE)[:, None]
        first_tile, last_tile = program_tiles(tiles, tiles_per_split)
        for tile in range(first_tile, last_tile):
            base, offsets, mask, _ = tile_access(
                tile, samples, channels, spatial, stride_channel, stride_spatial,
                BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL,
            )  # fmt: skip
            dx = tl.load(dy_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
            if TRAINING:
                x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
                dx -= subtract(x, mean) * c1 + c2
            dx *= scale
            tl.store(dx_ptr + base + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def batch_norm_forward(
    x, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps, save_statistics
):  # fmt: skip
    """y, and mean and var of each channel, or None where they are not to be saved.

    Updates the running statistics and increments `num_batches_tracked` where they are given;
    `momentum=None` stands for the cumulative average, 1 / num_batches_tracked.
    """
    x = dense(x)
    weight, bias = launch.contiguous(weight, bias)
    y = torch.empty_like(x)
    mean = var = None
    if save_statistics:
        mean = channel_values(x)
        var = torch.empty_like(mean, dtype=launch.compute_dtype(x.dtype))
    cumulative = momentum is None
    # a single launch cannot both count the batches and divide by their number: its programs do not wait
    held = None if cumulative else held_plan(x, launch.batch_norm_held_forward_tile)
    if held is not None:
        batch_norm_held.forward(
            held, x, y, weight, bias, running_mean, running_var, num_batches_tracked, mean, var, momentum, eps
        )
        return y, mean, var

    grid, sizes, constants, merged_splits, _ = plan(x)
    partial = channel_values(x, 3, grid[1])
    launch.launch_unplanned(
        batch_norm_statistics_kernel, grid, x.device,
        x, partial, num_batches_tracked, *sizes, **constants,
    )  # fmt: skip
    launch.launch_unplanned(
        batch_norm_normalize_kernel, grid, x.device,
        x, y, partial, weight, bias, running_mean, running_var,
        num_batches_tracked if cumulative else None, mean, var,
        *sizes, grid[1], 0.0 if cumulative else momentum, eps, BLOCK_SPLITS=merged_splits, **constants,
    )  # fmt: skip
    return y, mean, var


def batch_norm_inference(x, weight, bias, running_mean, running_var, eps, save_statistics):
    """y from the running statistics, and a copy of them where they are to be saved."""
    x = dense(x)
    weight, bias = launch.contiguous(weight, bias)
    grid, sizes, constants, _, _ = plan(x)
    y = torch.empty_like(x)
    mean = var = None
    if save_statistics:
        mean, var = torch.empty_like(running_mean), torch.empty_like(running_var)
    launch.launch_unplanned(
        batch_norm_inference_kernel, grid, x.device,
        x, y, weight, bias, running_mean, running_var, mean, var, *sizes, eps, **constants,
    )  # fmt: skip
    return y, mean, var


def batch_norm_backward(dy, x, weight, mean, var, eps, parameter_dtype, training, wanted):
    """The wanted ones of dx, dweight and dbias, None for the others."""
    want_dx, want_dweight, want_dbias = wanted
    x = dense(x)
    if dy.stride() != x.stride():
        dy = torch.empty_like(x, dtype=dy.dtype).copy_(dy)
    (weight,) = launch.contiguous(weight)
    dx = torch.empty_like(x) if want_dx else None
    dweight, dbias = (
        torch.empty(x.shape[1], dtype=parameter_dtype, device=x.device) if want else None
        for want in (want_dweight, want_dbias)
    )
    held = held_plan(x, launch.batch_norm_held_backward_tile)
    if held is not None:
        batch_norm_held.backward(held, dy, x, dx, weight, mean, var, dweight, dbias, eps, training)
        return dx, dweight, dbias

    grid, sizes, constants, merged_splits, count = plan(x)
    splits = grid[1]
    partial = None
    if want_dweight or want_dbias or training:
        partial = channel_values(x, 2, splits)
        launch.launch_unplanned(
            batch_norm_backward_sums_kernel, grid, x.device,
            dy, x, mean, partial, *sizes, **constants,
        )  # fmt: skip
    launch.launch_unplanned(
        batch_norm_backward_kernel, grid if want_dx else (grid[0], 1), x.device,
        dy, x, dx, weight, mean, var, partial, dweight, dbias, *sizes, splits, count, eps,
        TRAINING=training, BLOCK_SPLITS=merged_splits, **constants,
    )  # fmt: skip
    return dx, dweight, dbias
