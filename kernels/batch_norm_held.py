"""BatchNorm of channels that are held in registers: a program reads all of its channels, once, in one launch.

The formulas are in `batch_norm`.
"""

import triton
import triton.language as tl

from . import launch
from .channels import load_channels, program_channels, store_channels, store_statistics, tile_access
from .statistics import moments, recentred, subtract


@triton.jit(do_not_specialize=["samples", "channels", "spatial"])
def batch_norm_held_kernel(
    x_ptr, y_ptr,
    weight_ptr, bias_ptr,                 # [channels] or None
    running_mean_ptr, running_var_ptr,    # [channels] or None
    num_batches_tracked_ptr,              # scalar or None
    mean_ptr, var_ptr,                    # [channels] or None
    samples, channels, spatial,
    momentum: tl.float64, eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    channel, channel_mask, channels, spatial, stride_channel, stride_spatial = program_channels(
        channels, spatial, CHANNELS_LAST, VECTOR, BLOCK_CHANNELS
    )
    base, offsets, mask, positions = tile_access(
        0, samples, channels, spatial, stride_channel, stride_spatial,
        BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL,
    )  # fmt: skip
    x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    shift = load_channels(x_ptr, channel.to(tl.int64) * stride_channel, channel_mask).to(COMPUTE_DTYPE)
    shift = recentred(shift, x, mask, positions.to(COMPUTE_DTYPE))
    mean, m2 = moments(x - shift[:, None], mask, positions.to(COMPUTE_DTYPE), 1)
    mean, m2 = shift.to(tl.float64) + mean.to(tl.float64), m2.to(tl.float64)
    count = positions.to(tl.float64)

    rstd = tl.rsqrt(m2 / count + tl.full([], eps, tl.float64))
    scale = (rstd * load_channels(weight_ptr, channel, channel_mask, 1.0)).to(COMPUTE_DTYPE)[:, None]
    bias = load_channels(bias_ptr, channel, channel_mask).to(COMPUTE_DTYPE)[:, None]
    y = subtract(x, mean) * scale + bias
    tl.store(y_ptr + base + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)

    store_statistics(
        mean_ptr, var_ptr, running_mean_ptr, running_var_ptr,
        mean, m2, count, tl.full([], momentum, tl.float64), channel, channel_mask,
    )  # fmt: skip
    if num_batches_tracked_ptr is not None:
        if tl.program_id(0) == 0:
            tl.store(num_batches_tracked_ptr, tl.load(num_batches_tracked_ptr) + 1)


@triton.jit(do_not_specialize=["samples", "channels", "spatial"])
def batch_norm_held_backward_kernel(
    dy_ptr, x_ptr, dx_ptr,       # dx or None
    weight_ptr,                  # [channels] or None
    mean_ptr, var_ptr,           # [channels]
    dweight_ptr, dbias_ptr,      # [channels] or None
    samples, channels, spatial,
    eps: tl.float64,
    TRAINING: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    channel, channel_mask, channels, spatial, stride_channel, stride_spatial = program_channels(
        channels, spatial, CHANNELS_LAST, VECTOR, BLOCK_CHANNELS
    )
    base, offsets, mask, count = tile_access(
        0, samples, channels, spatial, stride_channel, stride_spatial,
        BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL,
    )  # fmt: skip
    dy = tl.load(dy_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    var = load_channels(var_ptr, channel, channel_mask)
    rstd = tl.rsqrt(var + tl.full([], eps, tl.float64))

    deviation = subtract(x, load_channels(mean_ptr, channel, channel_mask))
    dbias = tl.sum(dy, 1).to(tl.float64)
    dweight = tl.sum(dy * deviation, 1).to(tl.float64) * rstd  # dy is 0 where there is no element
    if dbias_ptr is not None:
        store_channels(dbias_ptr, channel, dbias, channel_mask)
    if dweight_ptr is not None:
        store_channels(dweight_ptr, channel, dweight, channel_mask)

    if dx_ptr is not None:
        dx = dy
        if TRAINING:
            c1 = (dweight * rstd / count).to(COMPUTE_DTYPE)[:, None]
            c2 = (dbias / count).to(COMPUTE_DTYPE)[:, None]
            dx -= deviation * c1 + c2
        dx *= (rstd * load_channels(weight_ptr, channel, channel_mask, 1.0)).to(COMPUTE_DTYPE)[:, None]
        tl.store(dx_ptr + base + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def forward(
    plan, x, y, weight, bias, running_mean, running_var, num_batches_tracked, mean, var, momentum, eps
):  # fmt: skip
    """Fills y and those of mean and var that are given, and updates the running statistics."""
    grid, sizes, constants = plan
    launch.launch_unplanned(
        batch_norm_held_kernel, grid, x.device,
        x, y, weight, bias, running_mean, running_var, num_batches_tracked, mean, var,
        *sizes, momentum, eps, **constants,
    )  # fmt: skip


def backward(plan, dy, x, dx, weight, mean, var, dweight, dbias, eps, training):
    """Fills those of dx, dweight and dbias that are given."""
    grid, sizes, constants = plan
    launch.launch_unplanned(
        batch_norm_held_backward_kernel, grid, x.device,
        dy, x, dx, weight, mean, var, dweight, dbias, *sizes, eps, TRAINING=training, **constants,
    )  # fmt: skip
