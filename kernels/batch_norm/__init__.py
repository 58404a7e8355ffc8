"""Batch normalisation of each channel over the batch and the spatial positions, and what follows it.

    n = batch spatial, sums over one channel
    training:   mean = sum(x) / n,  var = sum((x - mean)^2) / n,  and the running statistics become
                running_mean = (1 - momentum) running_mean + momentum mean
                running_var = (1 - momentum) running_var + momentum var n / (n - 1)
    inference:  mean = running_mean,  var = running_var
    rstd = 1 / sqrt(var + eps),  x_hat = (x - mean) rstd
    z = x_hat weight + bias + residual,  y = act(z)

    dz = dy act'(z),  dresidual = dz
    dbias = sum(dz)              training:   dx = (dz - x_hat dweight / n - dbias / n) weight rstd
    dweight = sum(dz x_hat)      inference:  dx = dz weight rstd

A channel that can be held in registers is read once, in one launch (`batch_norm_held`). A larger one is cut
into splits, one program each, and read twice, in two launches (`batch_norm_split`).

act, residual or both may be absent (`Fused`), and neither costs a pass over memory: the backward computes z
from x once more. Where there is a residual as well, it reads the residual again, which need not be a copy, or
where act consists of lines one bit an element, which is less (`activations`). In two launches, the first
leaves dz as dresidual, and the second reads that in place of dy.

Elements are computed with in float32, relative to a value among them. A channel's mean is float64: float32
would round a mean of 10^6 by a thirtieth of a standard deviation of 1, and so move every x_hat of the
channel in the same direction.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from normreg.kernels import dtypes, launch
from normreg.kernels.batch_norm import splits as batch_norm_split
from normreg.kernels.batch_norm import tile as batch_norm_held
from normreg.kernels.batch_norm.splits import normalize_tiles
from normreg.kernels.device.activations import LINES
from normreg.kernels.device.channels import (
    bits_like,
    channel_values,
    dense,
    held_plan,
    in_format_of,
    load_channels,
    plan,
    program_channels,
    store_channels,
)
from normreg.kernels.device.statistics import rstd_of


class Fused(NamedTuple):
    """What follows the normalisation in the same launches. All tensors are like x; any may be absent."""

    act: str | None = None  # of activations.NAMES
    negative_slope: float = 0.0
    residual: torch.Tensor | None = None
    bits: torch.Tensor | None = None  # which elements are on the line of slope 1, to be filled or as filled


NOTHING = Fused()


def fused(x, act, negative_slope, residual, save):
    """`Fused` for the forward of x as `dense` returns it; `save`: whether there is to be a backward."""
    if residual is not None:
        residual = in_format_of(x, residual)
    bits = bits_like(x) if save and keeps_bits(act, residual) else None
    return Fused(act, negative_slope, residual, bits)


def keeps_bits(act, residual):
    return act in LINES and residual is not None


@triton.jit(do_not_specialize=["samples", "channels", "spatial", "tiles", "tiles_per_split"])
def batch_norm_inference_kernel(
    x_ptr, y_ptr,
    weight_ptr, bias_ptr,                 # [channels] or None
    running_mean_ptr, running_var_ptr,    # [channels]
    mean_ptr, var_ptr,                    # [channels] or None
    residual_ptr, bits_ptr,               # like x, or None
    samples, channels, spatial, tiles, tiles_per_split,
    eps: tl.float64, negative_slope: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
    ACT: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = (BLOCK_SAMPLES, BLOCK_CHANNELS, BLOCK_SPATIAL)
    channel, channel_mask, sizes = program_channels(samples, channels, spatial, CHANNELS_LAST, VECTOR, BLOCK)
    mean = load_channels(running_mean_ptr, channel, channel_mask)
    var = load_channels(running_var_ptr, channel, channel_mask)
    rstd = rstd_of(var, eps)
    if mean_ptr is not None:
        if tl.program_id(1) == 0:
            store_channels(mean_ptr, channel, mean, channel_mask)
            store_channels(var_ptr, channel, var, channel_mask)

    normalize_tiles(
        x_ptr, y_ptr, weight_ptr, bias_ptr, residual_ptr, bits_ptr, mean, rstd, channel, channel_mask,
        sizes, tiles, tiles_per_split, negative_slope, COMPUTE_DTYPE, CHANNELS_LAST, BLOCK, ACT,
    )  # fmt: skip


def batch_norm_forward(
    x, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps, save_statistics,
    fused=NOTHING,
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
        var = torch.empty_like(mean, dtype=dtypes.compute_dtype(x.dtype))
    running = running_mean, running_var, num_batches_tracked
    # a single launch cannot both count the batches and divide by their number: its programs do not wait
    held = None
    if momentum is not None:
        held = held_plan(x, "batch_norm_held_forward_tile", fused.residual is not None)
    if held is not None:
        batch_norm_held.forward(held, x, y, weight, bias, *running, mean, var, momentum, eps, fused)
    else:
        batch_norm_split.forward(x, y, weight, bias, *running, mean, var, momentum, eps, fused)
    return y, mean, var


def batch_norm_inference(
    x, weight, bias, running_mean, running_var, eps, save_statistics, fused=NOTHING
):  # fmt: skip
    """y from the running statistics, and a copy of them where they are to be saved."""
    x = dense(x)
    weight, bias = launch.contiguous(weight, bias)
    grid, sizes, constants, _, _ = plan(x)
    y = torch.empty_like(x)
    mean = var = None
    if save_statistics:
        mean, var = torch.empty_like(running_mean), torch.empty_like(running_var)
    launch.launch(
        launch.kept_launch(
            batch_norm_inference_kernel, grid, x.device, *sizes, eps, fused.negative_slope,
            ACT=fused.act, **constants,
        ),
        x, y, weight, bias, running_mean, running_var, mean, var, fused.residual, fused.bits,
    )  # fmt: skip
    return y, mean, var


def batch_norm_backward(
    dy, x, weight, mean, var, eps, parameter_dtype, training, wanted, bias=None, fused=NOTHING
):  # fmt: skip
    """The wanted ones of dx, dweight and dbias, and of dresidual where `wanted` has it; None for the others.

    bias: needed where z is, of which there are no `fused.bits`.
    """
    want_dx, want_dweight, want_dbias, *want_dresidual = wanted
    x = dense(x)
    dy = in_format_of(x, dy)
    if fused.residual is not None:
        fused = fused._replace(residual=in_format_of(x, fused.residual))
    weight, bias = launch.contiguous(weight, bias)
    dx, *dresidual = (torch.empty_like(x) if want else None for want in (want_dx, *want_dresidual))
    dweight, dbias = (
        torch.empty(x.shape[1], dtype=parameter_dtype, device=x.device) if want else None
        for want in (want_dweight, want_dbias)
    )
    to_fill = dweight, dbias, dresidual[0] if dresidual else None
    held = held_plan(x, "batch_norm_held_backward_tile")
    if held is not None:
        batch_norm_held.backward(held, dy, x, dx, weight, bias, mean, var, *to_fill, eps, training, fused)
    else:
        batch_norm_split.backward(dy, x, dx, weight, bias, mean, var, *to_fill, eps, training, fused)
    return dx, dweight, dbias, *dresidual
