"""BatchNorm of channels that fit into a tile: one launch, whose programs read each element once.

The formulas are in `batch_norm`.
"""

import triton
import triton.language as tl

from normreg.kernels.device.channel_moments import tile_moments
from normreg.kernels.device.channels import (
    Elements,
    ElementsBackward,
    PerChannel,
    PerChannelBackward,
    load_tile,
    program_channels,
    store_tile,
    tile_access,
)
from normreg.kernels.device.normalize import load_affine, load_dz, projections, store_normalized
from normreg.kernels.device.per_channel import (
    average_factor,
    count_batch,
    load_channels,
    load_mean,
    store_gradients,
    store_statistics,
)
from normreg.kernels.device.statistics import compute_dtype, divide, exact_std
from normreg.kernels.partition import Partition


@triton.jit(do_not_specialize=["samples", "channels", "spatial"])
def batch_norm_tile_kernel(
    elements: Elements,  # x, y; residual, bits or None
    per_channel: PerChannel,  # any may be None
    samples,
    channels,
    spatial,
    momentum: tl.float64,
    eps: tl.float64,
    negative_slope: tl.float64,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    program = program_channels(samples, channels, spatial, TILE)
    channel, channel_mask = program.channel, program.mask
    access = tile_access(0, program, TILE)
    x, count = load_tile(elements.x, access, DTYPE), access.positions
    mean, m2 = tile_moments(x, access.mask, count, TILE)

    std = exact_std(divide(m2, count), eps)
    affine = load_affine(per_channel, mean, std, channel, channel_mask, DTYPE)
    store_normalized(elements, x, affine, access, program, negative_slope, ACT, TILE)

    factor = average_factor(momentum, None)
    store_statistics(per_channel, mean, m2, count, factor, channel, channel_mask)
    count_batch(per_channel.num_batches_tracked, tl.program_id(0))


@triton.jit(do_not_specialize=["samples", "channels", "spatial"])
def batch_norm_tile_backward_kernel(
    elements: ElementsBackward,  # dy, x; residual, bits, dx, dresidual or None
    per_channel: PerChannelBackward,  # mean, var; weight, bias, dweight, dbias or None
    samples,
    channels,
    spatial,
    eps: tl.float64,
    negative_slope: tl.float64,
    TRAINING: tl.constexpr,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    program = program_channels(samples, channels, spatial, TILE)
    channel, channel_mask = program.channel, program.mask
    access = tile_access(0, program, TILE)
    mean = load_mean(per_channel.mean, channel, channel_mask, DTYPE)
    std = exact_std(load_channels(per_channel.var, channel, channel_mask, DTYPE), eps)
    affine = load_affine(per_channel, mean, std, channel, channel_mask, DTYPE)
    dz, deviation = load_dz(elements, affine, access, program, negative_slope, ACT, TILE)
    if elements.dresidual is not None:
        store_tile(elements.dresidual, access, dz)

    dbias = tl.sum(dz, 1)
    dweight = divide(tl.sum(dz * deviation, 1) - mean.low * dbias, std.value)
    store_gradients(per_channel, dweight, dbias, channel, channel_mask)

    if elements.dx is not None:
        dx = dz
        if TRAINING:
            c1, c2 = projections(dweight, dbias, mean, std, access.positions)
            dx -= deviation * c1 + c2
        store_tile(elements.dx, access, dx * affine.scale)


def forward(
    partition: Partition,
    elements: Elements,
    per_channel: PerChannel,
    momentum: float,
    eps: float,
    act: str | None,
    negative_slope: float,
) -> None:
    """Fills y and those of mean and var that are given, and updates the running statistics."""
    tensors = *elements, *per_channel
    partition.launch(batch_norm_tile_kernel, tensors, momentum, eps, negative_slope, ACT=act)


def backward(
    partition: Partition,
    elements: ElementsBackward,
    per_channel: PerChannelBackward,
    training: bool,
    eps: float,
    act: str | None,
    negative_slope: float,
) -> None:
    """Fills those of dx, dweight, dbias and dresidual that are given."""
    tensors = *elements, *per_channel
    partition.launch(
        batch_norm_tile_backward_kernel, tensors, eps, negative_slope, TRAINING=training, ACT=act
    )
