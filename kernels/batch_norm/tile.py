"""BatchNorm of channels that are held in registers: a program reads all of its channels, once, in one launch.

The formulas are in `batch_norm`.
"""

import triton
import triton.language as tl

from normreg.kernels import launch
from normreg.kernels.batch_norm.splits import load_affine, load_dz, store_activated
from normreg.kernels.device.channels import (
    load_channels,
    load_tile,
    program_channels,
    store_channels,
    store_statistics,
    store_tile,
    tile_access,
)
from normreg.kernels.device.statistics import moments, recentred, rstd_of, subtract


@triton.jit(do_not_specialize=["samples", "channels", "spatial"])
def batch_norm_held_kernel(
    x_ptr, y_ptr,
    weight_ptr, bias_ptr,                 # [channels] or None
    running_mean_ptr, running_var_ptr,    # [channels] or None
    num_batches_tracked_ptr,              # scalar or None
    mean_ptr, var_ptr,                    # [channels] or None
    residual_ptr, bits_ptr,               # like x, or None
    samples, channels, spatial,
    momentum: tl.float64, eps: tl.float64, negative_slope: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
    ACT: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = (BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL)
    channel, channel_mask, sizes = program_channels(samples, channels, spatial, CHANNELS_LAST, VECTOR, BLOCK)
    access, positions = tile_access(0, sizes, BLOCK)
    x, mask = load_tile(x_ptr, access, COMPUTE_DTYPE), access[2]
    shift = load_channels(x_ptr, channel.to(tl.int64) * sizes[3], channel_mask).to(COMPUTE_DTYPE)
    shift = recentred(shift, x, mask, positions.to(COMPUTE_DTYPE))
    mean, m2 = moments(x - shift[:, None], mask, positions.to(COMPUTE_DTYPE), 1)
    mean, m2 = shift.to(tl.float64) + mean.to(tl.float64), m2.to(tl.float64)
    count = positions.to(tl.float64)

    rstd = rstd_of(m2 / count, eps)
    scale, bias = load_affine(weight_ptr, bias_ptr, rstd, channel, channel_mask, COMPUTE_DTYPE)
    z = subtract(x, mean) * scale + bias
    store_activated(
        y_ptr, residual_ptr, bits_ptr, z, access, 0, sizes, negative_slope, CHANNELS_LAST, BLOCK, ACT
    )

    store_statistics(
        mean_ptr, var_ptr, running_mean_ptr, running_var_ptr,
        mean, m2, count, tl.full([], momentum, tl.float64), channel, channel_mask,
    )  # fmt: skip
    if num_batches_tracked_ptr is not None:
        if tl.program_id(0) == 0:
            tl.store(num_batches_tracked_ptr, tl.load(num_batches_tracked_ptr) + 1)


@triton.jit(do_not_specialize=["samples", "channels", "spatial"])
def batch_norm_held_backward_kernel(
    dy_ptr, x_ptr,
    weight_ptr, bias_ptr,        # [channels] or None
    mean_ptr, var_ptr,           # [channels]
    residual_ptr, bits_ptr,      # like x, or None
    dx_ptr, dresidual_ptr,       # like x, or None
    dweight_ptr, dbias_ptr,      # [channels] or None
    samples, channels, spatial,
    eps: tl.float64, negative_slope: tl.float64,
    TRAINING: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
    ACT: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = (BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL)
    channel, channel_mask, sizes = program_channels(samples, channels, spatial, CHANNELS_LAST, VECTOR, BLOCK)
    access, count = tile_access(0, sizes, BLOCK)
    mean = load_channels(mean_ptr, channel, channel_mask)
    rstd = rstd_of(load_channels(var_ptr, channel, channel_mask), eps)
    scale, bias = load_affine(weight_ptr, bias_ptr, rstd, channel, channel_mask, COMPUTE_DTYPE)
    dz, deviation = load_dz(
        dy_ptr, x_ptr, residual_ptr, bits_ptr, mean, scale, bias, access, 0, sizes, negative_slope,
        COMPUTE_DTYPE, CHANNELS_LAST, BLOCK, ACT,
    )  # fmt: skip
    if dresidual_ptr is not None:
        store_tile(dresidual_ptr, access, dz)

    dbias = tl.sum(dz, 1).to(tl.float64)
    dweight = tl.sum(dz * deviation, 1).to(tl.float64) * rstd
    if dbias_ptr is not None:
        store_channels(dbias_ptr, channel, dbias, channel_mask)
    if dweight_ptr is not None:
        store_channels(dweight_ptr, channel, dweight, channel_mask)

    if dx_ptr is not None:
        dx = dz
        if TRAINING:
            c1 = (dweight * rstd / count).to(COMPUTE_DTYPE)[:, None]
            c2 = (dbias / count).to(COMPUTE_DTYPE)[:, None]
            dx -= deviation * c1 + c2
        store_tile(dx_ptr, access, dx * scale)


def forward(
    plan, x, y, weight, bias, running_mean, running_var, num_batches_tracked, mean, var, momentum, eps, fused
):  # fmt: skip
    """Fills y and those of mean and var that are given, and updates the running statistics."""
    grid, sizes, constants = plan
    launch.launch(
        launch.kept_launch(
            batch_norm_held_kernel, grid, x.device, *sizes, momentum, eps, fused.negative_slope,
            ACT=fused.act, **constants,
        ),
        x, y, weight, bias, running_mean, running_var, num_batches_tracked, mean, var,
        fused.residual, fused.bits,
    )  # fmt: skip


def backward(plan, dy, x, dx, weight, bias, mean, var, dweight, dbias, dresidual, eps, training, fused):
    """Fills those of dx, dweight, dbias and dresidual that are given."""
    grid, sizes, constants = plan
    launch.launch(
        launch.kept_launch(
            batch_norm_held_backward_kernel, grid, x.device, *sizes, eps, fused.negative_slope,
            TRAINING=training, ACT=fused.act, **constants,
        ),
        dy, x, weight, bias, mean, var, fused.residual, fused.bits, dx, dresidual, dweight, dbias,
    )  # fmt: skip
