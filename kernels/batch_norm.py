"""Batch normalisation of each channel over the batch and the spatial positions.

    n = batch spatial, sums over one channel
    training:   mean = sum(x) / n,  var = sum((x - mean)^2) / n,  and the running statistics become
                running_mean = (1 - momentum) running_mean + momentum mean
                running_var = (1 - momentum) running_var + momentum var n / (n - 1)
    inference:  mean = running_mean,  var = running_var
    rstd = 1 / sqrt(var + eps),  x_hat = (x - mean) rstd,  y = x_hat weight + bias

    dbias = sum(dy)              training:   dx = (dy - x_hat dweight / n - dbias / n) weight rstd
    dweight = sum(dy x_hat)      inference:  dx = dy weight rstd

A channel's elements are cut into tiles [channels, spatial] of one sample, the tiles into splits, one
program each. A first launch leaves a partial result a split and channel. Each program of the second
merges those of its channels, in a fixed order, and goes over its tiles again. Channels-last tensors
are one sample of batch * spatial positions whose channels are contiguous: other strides, same kernels.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch._prims_common import suggest_memory_format

from . import launch
from .statistics import merge_moments, merge_partials, moments


@triton.jit
def program_channels(
    channels, spatial, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):  # fmt: skip
    """This program's channels and their mask, then the sizes and strides (channels, spatial) in elements."""
    if CHANNELS_LAST:
        channels = channels * VECTOR
        stride_channel = 1
        stride_spatial = channels
    else:
        spatial = spatial * VECTOR
        stride_channel = spatial
        stride_spatial = 1
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    return channel, channel < channels, channels, spatial, stride_channel, stride_spatial


@triton.jit
def program_tiles(tiles, tiles_per_split):
    """First and past-the-last tile of this program's split."""
    first = tl.program_id(1) * tiles_per_split
    return first, tl.minimum(first + tiles_per_split, tiles)


@triton.jit
def tile_access(
    tile, channels, spatial, stride_channel, stride_spatial,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    """(base, offsets, mask) of this program's channels at a tile, and how many positions it has."""
    tiles_per_sample = tl.cdiv(spatial, BLOCK_SPATIAL)
    sample = (tile // tiles_per_sample).to(tl.int64)
    first_channel = tl.program_id(0).to(tl.int64) * BLOCK_CHANNELS
    first_position = (tile % tiles_per_sample).to(tl.int64) * BLOCK_SPATIAL
    base = sample * channels * spatial + first_channel * stride_channel + first_position * stride_spatial

    channel = tl.arange(0, BLOCK_CHANNELS)[:, None]
    position = tl.arange(0, BLOCK_SPATIAL)[None, :]
    mask = (first_channel + channel < channels) & (first_position + position < spatial)
    positions = tl.minimum(spatial - first_position, BLOCK_SPATIAL)
    return base, channel * stride_channel + position * stride_spatial, mask, positions


@triton.jit
def load_channels(ptr, offset, mask, DEFAULT: tl.constexpr, COMPUTE_DTYPE: tl.constexpr):
    """A value of each channel, DEFAULT where the tensor is absent."""
    if ptr is None:
        return tl.full(offset.shape, DEFAULT, COMPUTE_DTYPE)
    else:
        return tl.load(ptr + offset, mask=mask, other=0.0).to(COMPUTE_DTYPE)


@triton.jit
def load_partials(ptr, kind, channel, mask, splits, channels, SPLITS: tl.constexpr):
    """The partial results of one kind: [SPLITS, BLOCK_CHANNELS] of [kinds, splits, channels]."""
    split = tl.arange(0, SPLITS)[:, None]
    offsets = (kind * splits + split).to(tl.int64) * channels + channel[None, :]
    return tl.load(ptr + offsets, mask=(split < splits) & mask[None, :], other=0.0)


@triton.jit
def store_partial(ptr, kind, value, channel, mask, channels):
    """This program's partial result of one kind, into [kinds, splits, channels]."""
    row = (kind * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    tl.store(ptr + row * channels + channel, value, mask=mask)


@triton.jit(do_not_specialize=["channels", "spatial", "tiles", "tiles_per_split"])
def batch_norm_statistics_kernel(
    x_ptr,
    partial_ptr,                 # [count, mean and m2, splits, channels], mean relative to the shift
    num_batches_tracked_ptr,     # scalar or None
    channels, spatial, tiles, tiles_per_split,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    channel, channel_mask, channels, spatial, stride_channel, stride_spatial = program_channels(
        channels, spatial, CHANNELS_LAST, VECTOR, BLOCK_CHANNELS
    )
    shift = load_channels(x_ptr, channel.to(tl.int64) * stride_channel, channel_mask, 0.0, COMPUTE_DTYPE)

    count = tl.zeros_like(shift)
    mean = tl.zeros_like(shift)
    m2 = tl.zeros_like(shift)
    first_tile, last_tile = program_tiles(tiles, tiles_per_split)
    for tile in range(first_tile, last_tile):
        base, offsets, mask, positions = tile_access(
            tile, channels, spatial, stride_channel, stride_spatial, BLOCK_CHANNELS, BLOCK_SPATIAL
        )
        x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE) - shift[:, None]
        tile_count = tl.zeros_like(shift) + positions
        tile_mean, tile_m2 = moments(x, mask, tile_count, 1)
        count, mean, m2 = merge_moments(count, mean, m2, tile_count, tile_mean, tile_m2)

    store_partial(partial_ptr, 0, count, channel, channel_mask, channels)
    store_partial(partial_ptr, 1, mean, channel, channel_mask, channels)
    store_partial(partial_ptr, 2, m2, channel, channel_mask, channels)
    if num_batches_tracked_ptr is not None:
        if tl.program_id(0) + tl.program_id(1) == 0:
            tl.store(num_batches_tracked_ptr, tl.load(num_batches_tracked_ptr) + 1)


@triton.jit
def normalize_tiles(
    x_ptr, y_ptr, shift, mean, scale, bias,
    channels, spatial, stride_channel, stride_spatial, tiles, tiles_per_split,
    COMPUTE_DTYPE: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    """y = (x - shift - mean) scale + bias over the tiles of this program's split."""
    first_tile, last_tile = program_tiles(tiles, tiles_per_split)
    for tile in range(first_tile, last_tile):
        base, offsets, mask, _ = tile_access(
            tile, channels, spatial, stride_channel, stride_spatial, BLOCK_CHANNELS, BLOCK_SPATIAL
        )
        x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        y = (x - shift[:, None] - mean[:, None]) * scale[:, None] + bias[:, None]
        tl.store(y_ptr + base + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def update_running(running_ptr, value, momentum, channel, mask):
    """running = (1 - momentum) running + momentum value"""
    running = tl.load(running_ptr + channel, mask=mask, other=0.0).to(value.dtype)
    running = (1 - momentum) * running + momentum * value
    tl.store(running_ptr + channel, running.to(running_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["channels", "spatial", "tiles", "tiles_per_split", "splits"])
def batch_norm_normalize_kernel(
    x_ptr, y_ptr,
    partial_ptr,                          # [count, mean and m2, splits, channels]
    weight_ptr, bias_ptr,                 # [channels] or None
    running_mean_ptr, running_var_ptr,    # [channels] or None
    num_batches_tracked_ptr,              # scalar, for the cumulative average that replaces momentum, or None
    mean_ptr, rstd_ptr,                   # [channels] or None
    channels, spatial, tiles, tiles_per_split, splits,
    momentum: tl.float64, eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    channel, channel_mask, channels, spatial, stride_channel, stride_spatial = program_channels(
        channels, spatial, CHANNELS_LAST, VECTOR, BLOCK_CHANNELS
    )
    shift = load_channels(x_ptr, channel.to(tl.int64) * stride_channel, channel_mask, 0.0, COMPUTE_DTYPE)
    count, mean, m2 = merge_partials(
        load_partials(partial_ptr, 0, channel, channel_mask, splits, channels, SPLITS),
        load_partials(partial_ptr, 1, channel, channel_mask, splits, channels, SPLITS),
        load_partials(partial_ptr, 2, channel, channel_mask, splits, channels, SPLITS),
    )
    rstd = tl.rsqrt(m2 / count + tl.full([], eps, COMPUTE_DTYPE))

    if tl.program_id(1) == 0:
        if mean_ptr is not None:
            tl.store(mean_ptr + channel, shift + mean, mask=channel_mask)
            tl.store(rstd_ptr + channel, rstd, mask=channel_mask)
        if running_mean_ptr is not None:
            if num_batches_tracked_ptr is None:
                factor = tl.full([], momentum, COMPUTE_DTYPE)
            else:
                factor = 1 / tl.load(num_batches_tracked_ptr).to(COMPUTE_DTYPE)
            update_running(running_mean_ptr, shift + mean, factor, channel, channel_mask)
            update_running(running_var_ptr, m2 / (count - 1), factor, channel, channel_mask)

    scale = rstd * load_channels(weight_ptr, channel, channel_mask, 1.0, COMPUTE_DTYPE)
    bias = load_channels(bias_ptr, channel, channel_mask, 0.0, COMPUTE_DTYPE)
    normalize_tiles(
        x_ptr, y_ptr, shift, mean, scale, bias,
        channels, spatial, stride_channel, stride_spatial, tiles, tiles_per_split,
        COMPUTE_DTYPE, BLOCK_CHANNELS, BLOCK_SPATIAL,
    )  # fmt: skip


@triton.jit(do_not_specialize=["channels", "spatial", "tiles", "tiles_per_split"])
def batch_norm_inference_kernel(
    x_ptr, y_ptr,
    weight_ptr, bias_ptr,                 # [channels] or None
    running_mean_ptr, running_var_ptr,    # [channels]
    mean_ptr, rstd_ptr,                   # [channels] or None
    channels, spatial, tiles, tiles_per_split,
    eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    channel, channel_mask, channels, spatial, stride_channel, stride_spatial = program_channels(
        channels, spatial, CHANNELS_LAST, VECTOR, BLOCK_CHANNELS
    )
    mean = load_channels(running_mean_ptr, channel, channel_mask, 0.0, COMPUTE_DTYPE)
    var = load_channels(running_var_ptr, channel, channel_mask, 0.0, COMPUTE_DTYPE)
    rstd = tl.rsqrt(var + tl.full([], eps, COMPUTE_DTYPE))
    if mean_ptr is not None:
        if tl.program_id(1) == 0:
            tl.store(mean_ptr + channel, mean, mask=channel_mask)
            tl.store(rstd_ptr + channel, rstd, mask=channel_mask)

    scale = rstd * load_channels(weight_ptr, channel, channel_mask, 1.0, COMPUTE_DTYPE)
    bias = load_channels(bias_ptr, channel, channel_mask, 0.0, COMPUTE_DTYPE)
    normalize_tiles(
        x_ptr, y_ptr, mean, tl.zeros_like(mean), scale, bias,
        channels, spatial, stride_channel, stride_spatial, tiles, tiles_per_split,
        COMPUTE_DTYPE, BLOCK_CHANNELS, BLOCK_SPATIAL,
    )  # fmt: skip


@triton.jit(do_not_specialize=["channels", "spatial", "tiles", "tiles_per_split"])
def batch_norm_backward_sums_kernel(
    dy_ptr, x_ptr,
    mean_ptr, rstd_ptr,          # [channels]
    partial_ptr,                 # [dbias and dweight, splits, channels]
    channels, spatial, tiles, tiles_per_split,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    channel, channel_mask, channels, spatial, stride_channel, stride_spatial = program_channels(
        channels, spatial, CHANNELS_LAST, VECTOR, BLOCK_CHANNELS
    )
    mean = load_channels(mean_ptr, channel, channel_mask, 0.0, COMPUTE_DTYPE)
    rstd = load_channels(rstd_ptr, channel, channel_mask, 0.0, COMPUTE_DTYPE)

    dbias = tl.zeros([BLOCK_CHANNELS, BLOCK_SPATIAL], COMPUTE_DTYPE)
    dweight = tl.zeros([BLOCK_CHANNELS, BLOCK_SPATIAL], COMPUTE_DTYPE)
    first_tile, last_tile = program_tiles(tiles, tiles_per_split)
    for tile in range(first_tile, last_tile):
        base, offsets, mask, _ = tile_access(
            tile, channels, spatial, stride_channel, stride_spatial, BLOCK_CHANNELS, BLOCK_SPATIAL
        )
        dy = tl.load(dy_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        dbias += dy
        dweight += tl.where(mask, dy * (x - mean[:, None]) * rstd[:, None], 0.0)

    store_partial(partial_ptr, 0, tl.sum(dbias, 1), channel, channel_mask, channels)
    store_partial(partial_ptr, 1, tl.sum(dweight, 1), channel, channel_mask, channels)


@triton.jit(do_not_specialize=["channels", "spatial", "tiles", "tiles_per_split", "splits", "count"])
def batch_norm_backward_kernel(
    dy_ptr, x_ptr, dx_ptr,       # dx or None
    weight_ptr,                  # [channels] or None
    mean_ptr, rstd_ptr,          # [channels]
    partial_ptr,                 # [dbias and dweight, splits, channels] or None
    dweight_ptr, dbias_ptr,      # [channels] or None
    channels, spatial, tiles, tiles_per_split, splits, count,
    TRAINING: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    channel, channel_mask, channels, spatial, stride_channel, stride_spatial = program_channels(
        channels, spatial, CHANNELS_LAST, VECTOR, BLOCK_CHANNELS
    )
    if partial_ptr is not None:
        dbias = tl.sum(load_partials(partial_ptr, 0, channel, channel_mask, splits, channels, SPLITS), 0)
        dweight = tl.sum(load_partials(partial_ptr, 1, channel, channel_mask, splits, channels, SPLITS), 0)
        if tl.program_id(1) == 0:
            if dbias_ptr is not None:
                tl.store(dbias_ptr + channel, dbias.to(dbias_ptr.dtype.element_ty), mask=channel_mask)
            if dweight_ptr is not None:
                tl.store(
                    dweight_ptr + channel,
                    dweight.to(dweight_ptr.dtype.element_ty),
                    mask=channel_mask,
                )

    if dx_ptr is not None:
        mean = load_channels(mean_ptr, channel, channel_mask, 0.0, COMPUTE_DTYPE)
        rstd = load_channels(rstd_ptr, channel, channel_mask, 0.0, COMPUTE_DTYPE)
        scale = rstd * load_channels(weight_ptr, channel, channel_mask, 1.0, COMPUTE_DTYPE)
        first_tile, last_tile = program_tiles(tiles, tiles_per_split)
        for tile in range(first_tile, last_tile):
            base, offsets, mask, _ = tile_access(
                tile,
                channels,
                spatial,
                stride_channel,
                stride_spatial,
                BLOCK_CHANNELS,
                BLOCK_SPATIAL,
            )
            dx = tl.load(dy_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
            if TRAINING:
                x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
                x_hat = (x - mean[:, None]) * rstd[:, None]
                dx -= x_hat * (dweight / count)[:, None] + (dbias / count)[:, None]
            dx *= scale[:, None]
            tl.store(dx_ptr + base + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


class Plan(NamedTuple):
    """How the launches of one call cut x up."""

    grid: tuple[int, int]  # channel blocks, splits
    sizes: tuple[
        int, int, int, int
    ]  # channels and spatial, the contiguous one in vectors; tiles, tiles_per_split
    constants: dict
    count: int  # elements of a channel


def plan(x):
    """The plan for x as `dense` returns it."""
    samples, channels, spatial = x.shape[0], x.shape[1], x.shape[2:].numel()
    count = samples * spatial
    channels_last = spatial == 1 or not x.is_contiguous()
    if channels_last:
        samples, spatial = 1, count
    tile = launch.batch_norm_tile(channels, spatial, channels_last)
    tiles = samples * triton.cdiv(spatial, tile.spatial)
    channel_blocks = triton.cdiv(channels, tile.channels)
    splits, tiles_per_split = launch.batch_norm_splits(tiles, channel_blocks, x.device)
    vector = launch.vector(channels if channels_last else spatial)
    sizes = (channels // vector, spatial) if channels_last else (channels, spatial // vector)
    constants = dict(
        COMPUTE_DTYPE=launch.triton_dtype(launch.compute_dtype(x.dtype)),
        CHANNELS_LAST=channels_last,
        VECTOR=vector,
        BLOCK_CHANNELS=tile.channels,
        BLOCK_SPATIAL=tile.spatial,
        num_warps=tile.num_warps,
    )
    return Plan((channel_blocks, splits), (*sizes, tiles, tiles_per_split), constants, count)


def dense(x):
    """x, or a copy of it in the memory format torch gives the result: contiguous or channels-last."""
    return x.contiguous(memory_format=suggest_memory_format(x))


def channel_tensors(number, x, wanted=True):
    """Empty tensors of a value a channel in the compute dtype, or as many times None."""
    dtype = launch.compute_dtype(x.dtype)
    return [torch.empty(x.shape[1], dtype=dtype, device=x.device) if wanted else None for _ in range(number)]


def batch_norm_forward(
    x, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps, save_statistics
):  # fmt: skip
    """y, and mean and rstd of each channel, or None where they are not to be saved.

    Updates the running statistics and increments `num_batches_tracked` where they are given;
    `momentum=None` stands for the cumulative average, 1 / num_batches_tracked.
    """
    x = dense(x)
    weight, bias = launch.contiguous(weight, bias)
    grid, sizes, constants, _ = plan(x)
    y = torch.empty_like(x)
    mean, rstd = channel_tensors(2, x, save_statistics)
    partial = torch.empty((3, grid[1], x.shape[1]), dtype=launch.compute_dtype(x.dtype), device=x.device)
    launch.launch(
        batch_norm_statistics_kernel, grid, x.device,
        x, partial, num_batches_tracked, *sizes, **constants,
    )  # fmt: skip
    cumulative = momentum is None
    launch.launch(
        batch_norm_normalize_kernel, grid, x.device,
        x, y, partial, weight, bias, running_mean, running_var,
        num_batches_tracked if cumulative else None, mean, rstd,
        *sizes, grid[1], 0.0 if cumulative else momentum, eps, SPLITS=launch.MAX_SPLITS, **constants,
    )  # fmt: skip
    return y, mean, rstd


def batch_norm_inference(x, weight, bias, running_mean, running_var, eps, save_statistics):
    """y from the running statistics, and a copy of their mean and rstd where they are to be saved."""
    x = dense(x)
    weight, bias = launch.contiguous(weight, bias)
    grid, sizes, constants, _ = plan(x)
    y = torch.empty_like(x)
    mean, rstd = channel_tensors(2, x, save_statistics)
    launch.launch(
        batch_norm_inference_kernel, grid, x.device,
        x, y, weight, bias, running_mean, running_var, mean, rstd, *sizes, eps, **constants,
    )  # fmt: skip
    return y, mean, rstd


def batch_norm_backward(dy, x, weight, mean, rstd, parameter_dtype, training, wanted):
    """The wanted ones of dx, dweight and dbias, None for the others."""
    want_dx, want_dweight, want_dbias = wanted
    x = dense(x)
    if dy.stride() != x.stride():
        dy = torch.empty_like(x, dtype=dy.dtype).copy_(dy)
    (weight,) = launch.contiguous(weight)
    grid, sizes, constants, count = plan(x)
    splits = grid[1]

    partial = None
    if want_dweight or want_dbias or training:
        partial = torch.empty((2, splits, x.shape[1]), dtype=mean.dtype, device=x.device)
        launch.launch(
            batch_norm_backward_sums_kernel, grid, x.device,
            dy, x, mean, rstd, partial, *sizes, **constants,
        )  # fmt: skip
    dx = torch.empty_like(x) if want_dx else None
    dweight, dbias = (
        torch.empty(x.shape[1], dtype=parameter_dtype, device=x.device) if want else None
        for want in (want_dweight, want_dbias)
    )
    launch.launch(
        batch_norm_backward_kernel, grid if want_dx else (grid[0], 1), x.device,
        dy, x, dx, weight, mean, rstd, partial, dweight, dbias, *sizes, splits, count,
        TRAINING=training, SPLITS=launch.MAX_SPLITS, **constants,
    )  # fmt: skip
    return dx, dweight, dbias
