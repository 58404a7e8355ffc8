"""BatchNorm over the batches of several ranks: what each rank computes before and after the collectives.

    forward: each rank sends its own count, mean and m2, and merges those of all ranks in their order
        count = sum(count_r),  mean, m2 merged as in `statistics`,  var = m2 / count,  y as in `batch_norm`
    backward: each rank sends s1 and s2, its own sums of dz and dz (x - mean), over count; S1, S2 their sums
        dx = (dz - (x - mean) S2 rstd^2 - S1) weight rstd
        dbias = count s1,  dweight = count s2 rstd, of this rank's batch alone

What is sent is float32, or float64 for float64 tensors: forward 3 numbers a channel and two more, backward 2
a channel. A mean is sent as two numbers, `high + low`, so that a mean of 10^6 loses nothing; so is a rank's
count, which makes it exact up to 2^48.

A rank with an empty batch sends zeros, and its count of batches and running statistics move with the others'.
Where all batches are empty, the running statistics stay as they are.
"""

from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl

from normreg.kernels import dtypes, tiling
from normreg.kernels.batch_norm import Fused, normalized
from normreg.kernels.batch_norm.splits import backward_of_sums, backward_sums, statistics
from normreg.kernels.device.channel_moments import merged_moments
from normreg.kernels.device.channels import ElementsBackward, PerChannel, PerChannelBackward
from normreg.kernels.device.per_channel import (
    average_factor,
    count_batch,
    load_channels,
    store_channels,
    store_gradients,
    sum_partials,
    update_running,
)
from normreg.kernels.device.statistics import Mean, divide, merge_moments, merge_partials, std_of
from normreg.kernels.memory_format import channel_values, contiguous, dense, in_format_of, partial_values
from normreg.kernels.partition import Partition, in_splits

EXTRA = 2  # numbers that a rank sends beside the 3 of each channel


@triton.jit
def program_values(channels, BLOCK_CHANNELS: tl.constexpr):
    """This program's channels, and their mask."""
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    return channel, channel < channels


@triton.jit
def store_pair(ptr, count):
    """A count as the sum of two numbers of the tensor's dtype."""
    high = count.to(ptr.dtype.element_ty)
    tl.store(ptr, high)
    tl.store(ptr + 1, (count.to(tl.float64) - high.to(tl.float64)).to(ptr.dtype.element_ty))


@triton.jit
def load_pair(ptr, offset, distance, mask):
    """The float64 that is the sum of two numbers of the tensor's dtype, `distance` apart."""
    high = tl.load(ptr + offset, mask=mask, other=0.0).to(tl.float64)
    return high + tl.load(ptr + offset + distance, mask=mask, other=0.0).to(tl.float64)


@triton.jit(do_not_specialize=["splits", "channels", "count"])
def sync_batch_norm_pack_kernel(
    partial_ptr,  # [count, high, low and m2, splits, channels]; an empty batch has no splits
    packed_ptr,  # high and low of the mean and m2, [3, channels]; high and low of the count
    num_batches_tracked_ptr,  # scalar or None
    splits,
    channels,
    count,
    BLOCK: tl.constexpr,  # splits, channels
):
    channel, mask = program_values(channels, BLOCK[1])
    at_least_one = tl.maximum(count, 1)
    mean, m2 = merged_moments(partial_ptr, channel, mask, splits, channels, at_least_one, BLOCK[0])
    tl.store(packed_ptr + channel, mean.high, mask=mask)
    tl.store(packed_ptr + channels + channel, mean.low, mask=mask)
    tl.store(packed_ptr + 2 * channels + channel, m2, mask=mask)
    store_pair(packed_ptr + 3 * channels, count)
    count_batch(num_batches_tracked_ptr, tl.program_id(0))


@triton.jit(do_not_specialize=["ranks", "channels"])
def sync_batch_norm_merge_kernel(
    gathered_ptr,  # what each rank has packed, [ranks, 3 channels + 2]
    per_channel: PerChannel,  # mean, var; running_mean, running_var, num_batches_tracked or None
    count_ptr,  # [1]
    ranks,
    channels,
    momentum: tl.float64,
    BLOCK: tl.constexpr,  # ranks, channels
):
    channel, channel_mask = program_values(channels, BLOCK[1])
    count = tl.full([], 0.0, tl.float64)
    mean = tl.zeros(channel.shape, tl.float64)
    m2 = tl.zeros(channel.shape, tl.float64)
    for first in range(0, ranks, BLOCK[0]):
        rank = first + tl.arange(0, BLOCK[0])
        row = rank.to(tl.int64) * (3 * channels + 2)
        counts = load_pair(gathered_ptr, row + 3 * channels, 1, rank < ranks)
        offsets, mask = row[:, None] + channel[None, :], (rank < ranks)[:, None] & channel_mask[None, :]
        means = load_pair(gathered_ptr, offsets, channels, mask)
        m2s = tl.load(gathered_ptr + offsets + 2 * channels, mask=mask, other=0.0).to(tl.float64)
        if tl.sum(counts, 0) > 0:
            _, block_mean, block_m2 = merge_partials(counts[:, None] + tl.zeros_like(means), means, m2s)
            count, mean, m2 = merge_moments(count, mean, m2, tl.sum(counts, 0), block_mean, block_m2)

    at_least_one = tl.maximum(count, 1.0)
    store_channels(per_channel.mean, channel, mean, channel_mask)
    store_channels(per_channel.var, channel, m2 / at_least_one, channel_mask)
    tl.store(count_ptr + channel, at_least_one + tl.zeros_like(mean), mask=channel == 0)
    if per_channel.running_mean is not None:
        if count > 0:
            factor = average_factor(momentum, per_channel.num_batches_tracked)
            exact = tl.zeros_like(mean)
            update_running(per_channel.running_mean, Mean(mean, exact), factor, channel, channel_mask)
            unbiased = Mean(m2 / (count - 1), exact)
            update_running(per_channel.running_var, unbiased, factor, channel, channel_mask)


@triton.jit(do_not_specialize=["splits", "channels"])
def sync_batch_norm_backward_pack_kernel(
    partial_ptr,  # [dbias and dweight std, splits, channels]; an empty batch has no splits
    per_channel: PerChannelBackward,  # var; dweight, dbias or None
    count_ptr,  # [1]
    packed_ptr,  # s1 and s2, [2, channels], or None
    splits,
    channels,
    eps: tl.float64,
    BLOCK: tl.constexpr,  # splits, channels
):
    channel, mask = program_values(channels, BLOCK[1])
    dbias, dweight = sum_partials(partial_ptr, channel, mask, splits, channels, BLOCK[0])
    if packed_ptr is not None:
        count = tl.load(count_ptr)
        store_channels(packed_ptr, channel, dbias.to(tl.float64) / count, mask)
        store_channels(packed_ptr + channels, channel, dweight.to(tl.float64) / count, mask)
    if per_channel.dweight is not None:
        dweight = divide(dweight, std_of(load_channels(per_channel.var, channel, mask, dweight.dtype), eps))
    store_gradients(per_channel, dweight, dbias, channel, mask)


def _launch(
    kernel: Any, x: torch.Tensor, first: int, tensors: Iterable[torch.Tensor | None], *numbers: float
) -> None:
    """Runs a kernel on values of the channels of `first` splits or ranks."""
    channels = x.shape[1]
    tile = tiling.channels.sync_batch_norm_tile(channels)
    constants = dict(BLOCK=(tile.rows, tile.cols), num_warps=tile.num_warps)
    grid = (triton.cdiv(channels, tile.cols),)
    Partition(x.device, grid, (first, channels), constants).launch(kernel, tensors, *numbers)


def pack(x: torch.Tensor, num_batches_tracked: torch.Tensor | None) -> torch.Tensor:
    """What a rank sends of its batch, [3 channels + 2]; counts the batch where the count is given."""
    x = dense(x)
    packed = x.new_empty(3 * x.shape[1] + EXTRA, dtype=dtypes.compute_dtype(x.dtype))
    partial = statistics(x, in_splits(x)) if x.numel() else partial_values(x, 4, 0)
    tensors = partial, packed, num_batches_tracked
    _launch(sync_batch_norm_pack_kernel, x, partial.shape[1], tensors, x.numel() // x.shape[1])
    return packed


def normalize(
    x: torch.Tensor,
    gathered: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    num_batches_tracked: torch.Tensor | None,
    momentum: float | None,
    eps: float,
    fused: Fused,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, and mean, var and count over all ranks; updates the running statistics.

    gathered: what `pack` returned on each rank, one after the other.
    """
    x = dense(x)
    weight, bias = contiguous(weight, bias)
    mean, count = channel_values(x), x.new_empty(1, dtype=torch.float64)
    var = torch.empty_like(mean, dtype=dtypes.compute_dtype(x.dtype))
    running = PerChannel(mean=mean, var=var, running_mean=running_mean, running_var=running_var)
    if momentum is None:
        momentum, running = 0.0, running._replace(num_batches_tracked=num_batches_tracked)
    ranks = gathered.numel() // (3 * x.shape[1] + EXTRA)
    _launch(sync_batch_norm_merge_kernel, x, ranks, (gathered, *running, count), momentum)
    y = normalized(x, PerChannel(weight, bias, running_mean=mean, running_var=var), eps, fused)
    return y, mean, var, count


def backward_pack(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    var: torch.Tensor,
    count: torch.Tensor,
    eps: float,
    parameter_dtype: torch.dtype,
    wanted: tuple[bool, bool, bool, bool],
    fused: Fused,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """What a rank sends in the backward, [2, channels], or None, and the wanted ones of dweight, dbias and
    dresidual, which is dz.

    wanted: of dx, without which nothing is sent, and of those three.
    """
    want_dx, *want_parameters, want_dresidual = wanted
    x = dense(x)
    packed = x.new_empty((2, x.shape[1]), dtype=dtypes.compute_dtype(x.dtype)) if want_dx else None
    dweight, dbias = (x.new_empty(x.shape[1], dtype=parameter_dtype) if w else None for w in want_parameters)
    dresidual = torch.empty_like(x) if want_dresidual else None
    partial = partial_values(x, 2, 0)
    if x.numel():
        partition = in_splits(x)
        partial = partial_values(x, 2, partition.splits)
        per_channel = PerChannelBackward(*contiguous(weight, bias), mean, var)
        elements = _backward_elements(dy, x, fused)._replace(dresidual=dresidual)
        numbers = eps, fused.act, fused.negative_slope
        backward_sums(elements, per_channel, partition, partial, *numbers)
    gradients = PerChannelBackward(None, None, None, var, dweight, dbias)
    tensors = partial, *gradients, count, packed
    _launch(sync_batch_norm_backward_pack_kernel, x, partial.shape[1], tensors, eps)
    return packed, dweight, dbias, dresidual


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    var: torch.Tensor,
    sums: torch.Tensor,
    dresidual: torch.Tensor | None,
    eps: float,
    fused: Fused,
) -> torch.Tensor:
    """dx, given the sums over all ranks of what `backward_pack` packs, and its dresidual."""
    x = dense(x)
    dx = torch.empty_like(x)
    if x.numel():
        elements = (
            _backward_elements(dy, x, fused)
            if dresidual is None
            else ElementsBackward(x, None, dresidual=dresidual)
        )
        per_channel = PerChannelBackward(*contiguous(weight, bias), mean, var)
        # already divided by the count of all ranks, which this one does not know
        partial, count = sums[:, None], 1
        numbers = count, eps, fused.act, fused.negative_slope
        backward_of_sums(elements._replace(dx=dx), per_channel, in_splits(x), partial, *numbers)
    return dx


def _backward_elements(dy: torch.Tensor, x: torch.Tensor, fused: Fused) -> ElementsBackward:
    fused = fused.in_format_of(x)
    return ElementsBackward(x, in_format_of(x, dy), None, fused.residual, fused.bits)
