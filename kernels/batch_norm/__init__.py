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

A channel that fits into a tile is read once, in one launch (`batch_norm.tile`). A larger one is cut into
splits, one program each, and read twice, in two launches (`batch_norm.splits`).

act, residual or both may be absent (`Fused`), and neither costs a pass over memory: the backward computes z
from x once more. With a residual it also reads the residual again, which need not be a copy, or, where act
consists of lines (`device.activations`), one bit an element, which is less. In two launches, the first leaves
dz as dresidual, and the second reads that in place of dy.

Arithmetic on elements is in float32. A channel's mean is the sum of two of these, saved as one float64:
float32 would round a mean of 10^6 by a thirtieth of a standard deviation of 1, and so move every x_hat of the
channel in the same direction.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from normreg.kernels import dtypes, tiling
from normreg.kernels.batch_norm import splits, tile
from normreg.kernels.device.activations import LINES
from normreg.kernels.device.channels import (
    Elements,
    ElementsBackward,
    PerChannel,
    PerChannelBackward,
    program_channels,
    program_tiles,
)
from normreg.kernels.device.normalize import load_affine, normalize_tiles
from normreg.kernels.device.per_channel import copy_channels, load_channels, load_mean
from normreg.kernels.device.statistics import compute_dtype, exact_std
from normreg.kernels.memory_format import bits_like, channel_values, contiguous, dense, in_format_of
from normreg.kernels.partition import in_splits, in_tiles


class Fused(NamedTuple):
    """What follows the normalisation in the same launches. The tensors are like x; any may be absent."""

    act: str | None = None  # one of activations.NAMES
    negative_slope: float = 0.0
    residual: torch.Tensor | None = None
    bits: torch.Tensor | None = None  # which elements are on the line of slope 1, to be filled or as filled

    def in_format_of(self, x: torch.Tensor) -> "Fused":
        """The same with the residual in x's memory format."""
        if self.residual is None:
            return self
        return self._replace(residual=in_format_of(x, self.residual))


NOTHING = Fused()


def fused(
    x: torch.Tensor, act: str | None, negative_slope: float, residual: torch.Tensor | None, save: bool
) -> Fused:
    """`Fused` for the forward of x as `dense` returns it; `save`: whether there is to be a backward."""
    if residual is not None:
        residual = in_format_of(x, residual)
    bits = bits_like(x) if save and keeps_bits(act, residual) else None
    return Fused(act, negative_slope, residual, bits)


def keeps_bits(act: str | None, residual: torch.Tensor | None) -> bool:
    return act in LINES and residual is not None


@triton.jit(do_not_specialize=["samples", "channels", "spatial", "tiles", "tiles_per_split"])
def batch_norm_inference_kernel(
    elements: Elements,  # x, y; residual, bits or None
    per_channel: PerChannel,  # running_mean, running_var; weight, bias, mean, var (copies to save) or None
    samples,
    channels,
    spatial,
    tiles,  # of a block of channels
    tiles_per_split,
    eps: tl.float64,
    negative_slope: tl.float64,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    program = program_channels(samples, channels, spatial, TILE)
    channel, channel_mask = program.channel, program.mask
    mean = load_mean(per_channel.running_mean, channel, channel_mask, DTYPE)
    var = load_channels(per_channel.running_var, channel, channel_mask, DTYPE)
    if per_channel.mean is not None:
        if tl.program_id(1) == 0:
            copy_channels(per_channel.running_mean, per_channel.mean, channel, channel_mask)
            copy_channels(per_channel.running_var, per_channel.var, channel, channel_mask)

    affine = load_affine(per_channel, mean, exact_std(var, eps), channel, channel_mask, DTYPE)
    span = program_tiles(tiles, tiles_per_split)
    normalize_tiles(elements, affine, program, span, negative_slope, ACT, TILE)


def batch_norm_forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    num_batches_tracked: torch.Tensor | None,
    momentum: float | None,
    eps: float,
    save_statistics: bool,
    fused: Fused = NOTHING,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """y, and mean and var of each channel, or None where they are not to be saved.

    Updates the running statistics and increments `num_batches_tracked` where they are given;
    `momentum=None` stands for the cumulative average, 1 / num_batches_tracked.
    """
    x = dense(x)
    weight, bias = contiguous(weight, bias)
    y = torch.empty_like(x)
    mean = var = None
    if save_statistics:
        mean = channel_values(x)
        var = torch.empty_like(mean, dtype=dtypes.compute_dtype(x.dtype))
    elements = Elements(x, y, fused.residual, fused.bits)
    per_channel = PerChannel(weight, bias, running_mean, running_var, num_batches_tracked, mean, var)
    numbers = eps, fused.act, fused.negative_slope
    # a single launch cannot both count the batches and divide by their number: its programs do not wait
    partition = None
    if momentum is not None:
        partition = in_tiles(x, tiling.channels.batch_norm_forward_tile, fused.residual is not None)
    if partition is not None:
        tile.forward(partition, elements, per_channel, momentum, *numbers)
    else:
        splits.forward(elements, per_channel, momentum, *numbers)
    return y, mean, var


def batch_norm_inference(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    eps: float,
    save_statistics: bool,
    fused: Fused = NOTHING,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """y from the running statistics, and a copy of them where they are to be saved."""
    x = dense(x)
    weight, bias = contiguous(weight, bias)
    mean = var = None
    if save_statistics:
        mean, var = torch.empty_like(running_mean), torch.empty_like(running_var)
    y = normalized(x, PerChannel(weight, bias, running_mean, running_var, None, mean, var), eps, fused)
    return y, mean, var


def normalized(x: torch.Tensor, per_channel: PerChannel, eps: float, fused: Fused) -> torch.Tensor:
    """y from the running statistics of `per_channel`; fills its mean and var where they are given."""
    y = torch.empty_like(x)
    if x.numel():
        tensors = *Elements(x, y, fused.residual, fused.bits), *per_channel
        in_splits(x).launch(batch_norm_inference_kernel, tensors, eps, fused.negative_slope, ACT=fused.act)
    return y


def batch_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    mean: torch.Tensor,
    var: torch.Tensor,
    eps: float,
    parameter_dtype: torch.dtype,
    training: bool,
    wanted: Sequence[bool],
    bias: torch.Tensor | None = None,
    fused: Fused = NOTHING,
) -> tuple[torch.Tensor | None, ...]:
    """The wanted ones of dx, dweight and dbias, and of dresidual where `wanted` has it; None for the others.

    bias: needed where z is, of which there are no `fused.bits`.
    """
    want_dx, want_dweight, want_dbias, *want_dresidual = wanted
    x = dense(x)
    dy, fused = in_format_of(x, dy), fused.in_format_of(x)
    weight, bias = contiguous(weight, bias)
    dx, *dresidual = (torch.empty_like(x) if want else None for want in (want_dx, *want_dresidual))
    dweight, dbias = (
        torch.empty(x.shape[1], dtype=parameter_dtype, device=x.device) if want else None
        for want in (want_dweight, want_dbias)
    )
    to_fill = dresidual[0] if dresidual else None
    elements = ElementsBackward(x, dy, dx, fused.residual, fused.bits, to_fill)
    per_channel = PerChannelBackward(weight, bias, mean, var, dweight, dbias)
    numbers = eps, fused.act, fused.negative_slope
    partition = in_tiles(x, tiling.channels.batch_norm_backward_tile)
    if partition is not None:
        tile.backward(partition, elements, per_channel, training, *numbers)
    else:
        splits.backward(elements, per_channel, training, *numbers)
    return dx, dweight, dbias, *dresidual
