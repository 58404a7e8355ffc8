"""BatchNorm of channels too large to be held: two launches, the second merging what the first has summed.

The formulas are in `batch_norm`. Each program sums over its split of a channel (`channels`) and leaves a
partial result a channel. Each program of the second launch merges those of its channels, in a fixed order,
and goes over its tiles again, from the last to the first: what was touched last may still be in the cache.
"""

import triton
import triton.language as tl

from normreg.kernels import launch
from normreg.kernels.device.activations import activate, activation_backward, is_steep, lines_backward
from normreg.kernels.device.channels import (
    channel_values,
    load_bits,
    load_channels,
    load_tile,
    merged_moments,
    plan,
    program_channels,
    program_tiles,
    store_bits,
    store_channels,
    store_partial,
    store_statistics,
    store_tile,
    sum_partials,
    tile_access,
)
from normreg.kernels.device.statistics import merge_moments, moments, recentred, rstd_of, subtract


@triton.jit(do_not_specialize=["samples", "channels", "spatial", "tiles", "tiles_per_split"])
def batch_norm_statistics_kernel(
    x_ptr,
    partial_ptr,                 # [count, mean and m2, splits, channels]
    num_batches_tracked_ptr,     # scalar or None
    samples, channels, spatial, tiles, tiles_per_split,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = (BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL)
    channel, channel_mask, sizes = program_channels(samples, channels, spatial, CHANNELS_LAST, VECTOR, BLOCK)
    channels, stride_channel = sizes[1], sizes[3]
    shift = load_channels(x_ptr, channel.to(tl.int64) * stride_channel, channel_mask).to(COMPUTE_DTYPE)

    count = tl.full([], 0.0, COMPUTE_DTYPE)
    mean = tl.zeros_like(shift)
    m2 = tl.zeros_like(shift)
    first_tile, last_tile = program_tiles(tiles, tiles_per_split)
    for tile in range(first_tile, last_tile):
        access, positions = tile_access(tile, sizes, BLOCK)
        x = load_tile(x_ptr, access, COMPUTE_DTYPE)
        mask = access[2]
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
def store_activated(
    y_ptr, residual_ptr, bits_ptr, z, access, tile, sizes, negative_slope,
    CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """y = act(z + residual), and which elements are on the line of slope 1 where that is to be kept."""
    if residual_ptr is not None:
        z += load_tile(residual_ptr, access, z.dtype)
    if bits_ptr is not None:
        store_bits(bits_ptr, is_steep(z, ACT), tile, sizes, CHANNELS_LAST, BLOCK)
    store_tile(y_ptr, access, activate(z, negative_slope, ACT))


@triton.jit
def load_dz(
    dy_ptr, x_ptr, residual_ptr, bits_ptr, mean, scale, bias, access, tile, sizes, negative_slope,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """dz = dy act'(z), 0 where there is no element, and x - mean, of a tile."""
    dz = load_tile(dy_ptr, access, COMPUTE_DTYPE)
    deviation = subtract(load_tile(x_ptr, access, COMPUTE_DTYPE), mean)
    if bits_ptr is not None:
        steep = load_bits(bits_ptr, tile, sizes, CHANNELS_LAST, BLOCK)
        dz = lines_backward(dz, steep, negative_slope, ACT)
    elif ACT is not None:
        z = deviation * scale + bias
        if residual_ptr is not None:
            z += load_tile(residual_ptr, access, COMPUTE_DTYPE)
        dz = tl.where(access[2], activation_backward(dz, z, negative_slope, ACT), 0.0)
    return dz, deviation


@triton.jit
def load_affine(
    weight_ptr, bias_ptr, rstd, channel, channel_mask, COMPUTE_DTYPE: tl.constexpr
):  # fmt: skip
    """rstd weight and bias, [channels, 1]."""
    scale = rstd * load_channels(weight_ptr, channel, channel_mask, 1.0)
    bias = load_channels(bias_ptr, channel, channel_mask)
    return scale.to(COMPUTE_DTYPE)[:, None], bias.to(COMPUTE_DTYPE)[:, None]


@triton.jit
def normalize_tiles(
    x_ptr, y_ptr, weight_ptr, bias_ptr, residual_ptr, bits_ptr, mean, rstd, channel, channel_mask,
    sizes, tiles, tiles_per_split, negative_slope,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr, ACT: tl.constexpr,
    REVERSED: tl.constexpr = False,
):  # fmt: skip
    """y = act((x - mean) rstd weight + bias + residual) over the tiles of this program's split."""
    scale, bias = load_affine(weight_ptr, bias_ptr, rstd, channel, channel_mask, COMPUTE_DTYPE)
    first_tile, last_tile = program_tiles(tiles, tiles_per_split, REVERSED)
    for back in range(first_tile, last_tile):
        tile = first_tile + last_tile - 1 - back
        access, _ = tile_access(tile, sizes, BLOCK)
        z = subtract(load_tile(x_ptr, access, COMPUTE_DTYPE), mean) * scale + bias
        store_activated(
            y_ptr, residual_ptr, bits_ptr, z, access, tile, sizes, negative_slope, CHANNELS_LAST, BLOCK, ACT
        )


@triton.jit(do_not_specialize=["samples", "channels", "spatial", "tiles", "tiles_per_split", "splits"])
def batch_norm_normalize_kernel(
    x_ptr, y_ptr,
    partial_ptr,                          # [count, mean and m2, splits, channels]
    weight_ptr, bias_ptr,                 # [channels] or None
    running_mean_ptr, running_var_ptr,    # [channels] or None
    num_batches_tracked_ptr,              # scalar, for the cumulative average that replaces momentum, or None
    mean_ptr, var_ptr,                    # [channels] or None
    residual_ptr, bits_ptr,               # like x, or None
    samples, channels, spatial, tiles, tiles_per_split, splits,
    momentum: tl.float64, eps: tl.float64, negative_slope: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = (BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL)
    channel, channel_mask, sizes = program_channels(
        samples, channels, spatial, CHANNELS_LAST, VECTOR, BLOCK, REVERSED=True
    )
    count, mean, m2 = merged_moments(partial_ptr, channel, channel_mask, splits, sizes[1], BLOCK_SPLITS)
    rstd = rstd_of(m2 / count, eps)

    if tl.program_id(1) == 0:
        factor = tl.full([], momentum, tl.float64)
        if num_batches_tracked_ptr is not None:
            factor = 1 / tl.load(num_batches_tracked_ptr).to(tl.float64)
        store_statistics(
            mean_ptr, var_ptr, running_mean_ptr, running_var_ptr,
            mean, m2, count, factor, channel, channel_mask,
        )  # fmt: skip

    normalize_tiles(
        x_ptr, y_ptr, weight_ptr, bias_ptr, residual_ptr, bits_ptr, mean, rstd, channel, channel_mask,
        sizes, tiles, tiles_per_split, negative_slope,
        COMPUTE_DTYPE, CHANNELS_LAST, BLOCK, ACT, REVERSED=True,
    )  # fmt: skip


@triton.jit(do_not_specialize=["samples", "channels", "spatial", "tiles", "tiles_per_split"])
def batch_norm_backward_sums_kernel(
    dy_ptr, x_ptr,
    weight_ptr, bias_ptr,        # [channels] or None
    mean_ptr, var_ptr,           # [channels]
    residual_ptr, bits_ptr,      # like x, or None
    dx_ptr, dresidual_ptr,       # like x, or None; dx where it needs no sums: in inference
    partial_ptr,                 # [dbias and dweight / rstd, splits, channels] or None
    samples, channels, spatial, tiles, tiles_per_split,
    eps: tl.float64, negative_slope: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
    ACT: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = (BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL)
    channel, channel_mask, sizes = program_channels(samples, channels, spatial, CHANNELS_LAST, VECTOR, BLOCK)
    mean = load_channels(mean_ptr, channel, channel_mask)
    rstd = rstd_of(load_channels(var_ptr, channel, channel_mask), eps)
    scale, bias = load_affine(weight_ptr, bias_ptr, rstd, channel, channel_mask, COMPUTE_DTYPE)

    dbias = tl.zeros([BLOCK_CHANNELS, BLOCK_SAMPLES * BLOCK_SPATIAL], COMPUTE_DTYPE)
    dweight = tl.zeros([BLOCK_CHANNELS, BLOCK_SAMPLES * BLOCK_SPATIAL], COMPUTE_DTYPE)
    first_tile, last_tile = program_tiles(tiles, tiles_per_split)
    for tile in range(first_tile, last_tile):
        access, _ = tile_access(tile, sizes, BLOCK)
        dz, deviation = load_dz(
            dy_ptr, x_ptr, residual_ptr, bits_ptr, mean, scale, bias, access, tile, sizes, negative_slope,
            COMPUTE_DTYPE, CHANNELS_LAST, BLOCK, ACT,
        )  # fmt: skip
        dbias += dz
        dweight += dz * deviation
        if dresidual_ptr is not None:
            store_tile(dresidual_ptr, access, dz)
        if dx_ptr is not None:
            store_tile(dx_ptr, access, dz * scale)

    if partial_ptr is not None:
        channels = sizes[1]
        store_partial(partial_ptr, 0, tl.sum(dbias, 1).to(tl.float64), channel, channel_mask, channels)
        store_partial(partial_ptr, 1, tl.sum(dweight, 1).to(tl.float64), channel, channel_mask, channels)


@triton.jit(
    do_not_specialize=["samples", "channels", "spatial", "tiles", "tiles_per_split", "splits", "count"]
)
def batch_norm_backward_kernel(
    dy_ptr, x_ptr,
    weight_ptr, bias_ptr,        # [channels] or None
    mean_ptr, var_ptr,           # [channels]
    residual_ptr, bits_ptr,      # like x, or None
    dx_ptr,                      # like x, in training, or None
    partial_ptr,                 # [dbias and dweight / rstd, splits, channels]
    dweight_ptr, dbias_ptr,      # [channels] or None
    samples, channels, spatial, tiles, tiles_per_split, splits, count,
    eps: tl.float64, negative_slope: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = (BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL)
    channel, channel_mask, sizes = program_channels(
        samples, channels, spatial, CHANNELS_LAST, VECTOR, BLOCK, REVERSED=True
    )
    channels = sizes[1]
    mean = load_channels(mean_ptr, channel, channel_mask)
    rstd = rstd_of(load_channels(var_ptr, channel, channel_mask), eps)
    dbias = sum_partials(partial_ptr, 0, channel, channel_mask, splits, channels, BLOCK_SPLITS)
    dweight = sum_partials(partial_ptr, 1, channel, channel_mask, splits, channels, BLOCK_SPLITS) * rstd
    if tl.program_id(1) == 0:
        if dbias_ptr is not None:
            store_channels(dbias_ptr, channel, dbias, channel_mask)
        if dweight_ptr is not None:
            store_channels(dweight_ptr, channel, dweight, channel_mask)

    if dx_ptr is not None:
        scale, bias = load_affine(weight_ptr, bias_ptr, rstd, channel, channel_mask, COMPUTE_DTYPE)
        c1 = (dweight * rstd / count).to(COMPUTE_DTYPE)[:, None]
        c2 = (dbias / count).to(COMPUTE_DTYPE)[:, None]
        first_tile, last_tile = program_tiles(tiles, tiles_per_split, REVERSED=True)
        for back in range(first_tile, last_tile):
            tile = first_tile + last_tile - 1 - back
            access, _ = tile_access(tile, sizes, BLOCK)
            dz, deviation = load_dz(
                dy_ptr, x_ptr, residual_ptr, bits_ptr, mean, scale, bias, access, tile, sizes, negative_slope,
                COMPUTE_DTYPE, CHANNELS_LAST, BLOCK, ACT,
            )  # fmt: skip
            store_tile(dx_ptr, access, (dz - (deviation * c1 + c2)) * scale)


def statistics(x, cut, num_batches_tracked=None):
    """Count, mean and m2 of each split of x, which `cut` is the plan of; counts the batch."""
    partial = channel_values(x, 3, cut.grid[1])
    kept = launch.kept_launch(batch_norm_statistics_kernel, cut.grid, x.device, *cut.sizes, **cut.constants)
    launch.launch(kept, x, partial, num_batches_tracked)
    return partial


def forward(
    x, y, weight, bias, running_mean, running_var, num_batches_tracked, mean, var, momentum, eps, fused
):  # fmt: skip
    """Fills y and those of mean and var that are given, and updates the running statistics."""
    cut = plan(x)
    partial = statistics(x, cut, num_batches_tracked)
    cumulative = momentum is None
    launch.launch(
        launch.kept_launch(
            batch_norm_normalize_kernel, cut.grid, x.device,
            *cut.sizes, cut.grid[1], 0.0 if cumulative else momentum, eps, fused.negative_slope,
            BLOCK_SPLITS=cut.merged_splits, ACT=fused.act, **cut.constants,
        ),
        x, y, partial, weight, bias, running_mean, running_var,
        num_batches_tracked if cumulative else None, mean, var, fused.residual, fused.bits,
    )  # fmt: skip


def backward_sums(dy, x, cut, dx, weight, bias, mean, var, dresidual, partial, eps, fused):
    """Fills `partial` and those of dresidual and, in inference, dx that are given."""
    launch.launch(
        launch.kept_launch(
            batch_norm_backward_sums_kernel, cut.grid, x.device, *cut.sizes, eps, fused.negative_slope,
            ACT=fused.act, **cut.constants,
        ),
        dy, x, weight, bias, mean, var, fused.residual, fused.bits, dx, dresidual, partial,
    )  # fmt: skip


def backward_of_sums(dy, x, cut, dx, weight, bias, mean, var, dweight, dbias, partial, count, eps, fused):
    """Fills those of dx, in training, dweight and dbias that are given, of sums over `count` elements."""
    launch.launch(
        launch.kept_launch(
            batch_norm_backward_kernel, cut.grid if dx is not None else (cut.grid[0], 1), x.device,
            *cut.sizes, partial.shape[1], count, eps, fused.negative_slope,
            BLOCK_SPLITS=cut.merged_splits, ACT=fused.act, **cut.constants,
        ),
        dy, x, weight, bias, mean, var, fused.residual, fused.bits, dx, partial, dweight, dbias,
    )  # fmt: skip


def backward(dy, x, dx, weight, bias, mean, var, dweight, dbias, dresidual, eps, training, fused):
    """Fills those of dx, dweight, dbias and dresidual that are given."""
    cut = plan(x)
    of_sums = (dweight, dbias, dx) if training else (dweight, dbias)
    partial = channel_values(x, 2, cut.grid[1]) if any(t is not None for t in of_sums) else None
    backward_sums(
        dy, x, cut, None if training else dx, weight, bias, mean, var, dresidual, partial, eps, fused
    )
    if partial is None:
        return
    if dresidual is not None:
        dy, fused = dresidual, of_dz(fused)
    dx = dx if training else None
    backward_of_sums(dy, x, cut, dx, weight, bias, mean, var, dweight, dbias, partial, cut.count, eps, fused)


def of_dz(fused):
    """`Fused` for a kernel that is given dz as dy."""
    return fused._replace(act=None, residual=None, bits=None)
