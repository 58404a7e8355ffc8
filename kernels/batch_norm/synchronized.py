"""BatchNorm over the batches of several ranks: what each rank computes before and after the collectives.

    forward: each rank sends its own count, mean and m2, and merges those of all ranks in their order
        count = sum(count_r),  mean, m2 merged as in `statistics`,  var = m2 / count,  y as in `batch_norm`
    backward: each rank sends s1 and s2, its own sums of dz and dz (x - mean), over count; S1, S2 their sums
        dx = (dz - (x - mean) S2 rstd^2 - S1) weight rstd
        dbias = count s1,  dweight = count s2 rstd, of this rank's batch alone

What is sent is float32, float64 for float64. Forward it is 3 numbers a channel and two more: the mean is two,
`high + low`, so that a mean of 10^6 costs nothing, and so is the count, which there is one of a rank, so that
it is exact to 2^48. Backward it is 2 numbers a channel.

A rank's batch may be empty: it sends zeros, and its counts of batches and running statistics move with the
others'. Where all are empty, the running statistics stay.
"""

import torch
import triton
import triton.language as tl

from normreg.kernels import dtypes, launch, tiling
from normreg.kernels.batch_norm import batch_norm_inference_kernel
from normreg.kernels.batch_norm.splits import backward_of_sums, backward_sums, of_dz, statistics
from normreg.kernels.device.channels import (
    channel_values,
    dense,
    in_format_of,
    load_channels,
    merged_moments,
    plan,
    store_channels,
    sum_partials,
    update_running,
)
from normreg.kernels.device.statistics import merge_moments, merge_partials, rstd_of

EXTRA = 2  # numbers that a rank sends beside 3 a channel


@triton.jit
def program_values(channels, BLOCK_CHANNELS: tl.constexpr):
    """This program's channels of what there is one of a channel, and their mask."""
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    return channel, channel < channels


@triton.jit
def store_pair(ptr, offset, distance, value, mask):
    """A float64 as the sum of two numbers of the tensor's dtype, `distance` apart."""
    high = value.to(ptr.dtype.element_ty)
    low = (value - high.to(tl.float64)).to(ptr.dtype.element_ty)
    tl.store(ptr + offset, high, mask=mask)
    tl.store(ptr + offset + distance, low, mask=mask)


@triton.jit
def load_pair(ptr, offset, distance, mask):
    high = tl.load(ptr + offset, mask=mask, other=0.0).to(tl.float64)
    return high + tl.load(ptr + offset + distance, mask=mask, other=0.0).to(tl.float64)


@triton.jit(do_not_specialize=["splits", "channels"])
def sync_batch_norm_pack_kernel(
    partial_ptr,                 # [count, mean and m2, splits, channels]; no splits of an empty batch
    packed_ptr,                  # high and low of the mean and m2, [3, channels]; high and low of the count
    num_batches_tracked_ptr,     # scalar or None
    splits, channels,
    BLOCK_SPLITS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    channel, mask = program_values(channels, BLOCK_CHANNELS)
    count, mean, m2 = merged_moments(partial_ptr, channel, mask, splits, channels, BLOCK_SPLITS)
    store_pair(packed_ptr, channel, channels, mean, mask)
    tl.store(packed_ptr + 2 * channels + channel, m2.to(packed_ptr.dtype.element_ty), mask=mask)
    store_pair(packed_ptr, 3 * channels + channel, 1, count, channel == 0)
    if num_batches_tracked_ptr is not None:
        if tl.program_id(0) == 0:
            tl.store(num_batches_tracked_ptr, tl.load(num_batches_tracked_ptr) + 1)


@triton.jit(do_not_specialize=["ranks", "channels"])
def sync_batch_norm_merge_kernel(
    gathered_ptr,                         # what each rank has packed, [ranks, 3 channels + 2]
    running_mean_ptr, running_var_ptr,    # [channels] or None
    num_batches_tracked_ptr,              # scalar, for the cumulative average that replaces momentum, or None
    mean_ptr, var_ptr,                    # [channels]
    count_ptr,                            # [1]
    ranks, channels,
    momentum: tl.float64,
    BLOCK_RANKS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    channel, channel_mask = program_values(channels, BLOCK_CHANNELS)
    count = tl.full([], 0.0, tl.float64)
    mean = tl.zeros([BLOCK_CHANNELS], tl.float64)
    m2 = tl.zeros([BLOCK_CHANNELS], tl.float64)
    for first in range(0, ranks, BLOCK_RANKS):
        rank = first + tl.arange(0, BLOCK_RANKS)
        row = rank.to(tl.int64) * (3 * channels + 2)
        counts = load_pair(gathered_ptr, row + 3 * channels, 1, rank < ranks)
        offsets, mask = row[:, None] + channel[None, :], (rank < ranks)[:, None] & channel_mask[None, :]
        means = load_pair(gathered_ptr, offsets, channels, mask)
        m2s = tl.load(gathered_ptr + offsets + 2 * channels, mask=mask, other=0.0).to(tl.float64)
        if tl.sum(counts, 0) > 0:
            _, block_mean, block_m2 = merge_partials(counts[:, None] + tl.zeros_like(means), means, m2s)
            count, mean, m2 = merge_moments(count, mean, m2, tl.sum(counts, 0), block_mean, block_m2)

    at_least_one = tl.maximum(count, 1.0)
    store_channels(mean_ptr, channel, mean, channel_mask)
    store_channels(var_ptr, channel, m2 / at_least_one, channel_mask)
    tl.store(count_ptr + channel, at_least_one + tl.zeros_like(mean), mask=channel == 0)
    if running_mean_ptr is not None:
        if count > 0:
            factor = tl.full([], momentum, tl.float64)
            if num_batches_tracked_ptr is not None:
                factor = 1 / tl.load(num_batches_tracked_ptr).to(tl.float64)
            update_running(running_mean_ptr, mean, factor, channel, channel_mask)
            update_running(running_var_ptr, m2 / (count - 1), factor, channel, channel_mask)


@triton.jit(do_not_specialize=["splits", "channels"])
def sync_batch_norm_backward_pack_kernel(
    partial_ptr,                # [dbias and dweight / rstd, splits, channels]; no splits of an empty batch
    var_ptr, count_ptr,         # [channels], [1]
    packed_ptr,                 # s1 and s2, [2, channels], or None
    dweight_ptr, dbias_ptr,     # [channels] or None
    splits, channels,
    eps: tl.float64,
    BLOCK_SPLITS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    channel, mask = program_values(channels, BLOCK_CHANNELS)
    dbias = sum_partials(partial_ptr, 0, channel, mask, splits, channels, BLOCK_SPLITS)
    dweight = sum_partials(partial_ptr, 1, channel, mask, splits, channels, BLOCK_SPLITS)
    if packed_ptr is not None:
        count = tl.load(count_ptr)
        store_channels(packed_ptr, channel, dbias / count, mask)
        store_channels(packed_ptr + channels, channel, dweight / count, mask)
    if dbias_ptr is not None:
        store_channels(dbias_ptr, channel, dbias, mask)
    if dweight_ptr is not None:
        rstd = rstd_of(load_channels(var_ptr, channel, mask), eps)
        store_channels(dweight_ptr, channel, dweight * rstd, mask)


def _launch(kernel, x, numbers, tensors, blocks):
    channels = x.shape[1]
    tile = tiling.channels.sync_batch_norm_tile(channels)
    constants = {blocks: tile.rows, "BLOCK_CHANNELS": tile.cols, "num_warps": tile.num_warps}
    grid = (triton.cdiv(channels, tile.cols),)
    first, *rest = numbers
    launch.launch(launch.kept_launch(kernel, grid, x.device, first, channels, *rest, **constants), *tensors)


def pack(x, num_batches_tracked):
    """What a rank sends of its batch, [3 channels + 2]; counts the batch where the count is given."""
    x = dense(x)
    packed = x.new_empty(3 * x.shape[1] + EXTRA, dtype=dtypes.compute_dtype(x.dtype))
    partial = statistics(x, plan(x)) if x.numel() else channel_values(x, 3, 0)
    tensors = partial, packed, num_batches_tracked
    _launch(sync_batch_norm_pack_kernel, x, (partial.shape[1],), tensors, "BLOCK_SPLITS")
    return packed


def normalize(
    x, gathered, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps, fused
):  # fmt: skip
    """y, and mean, var and count over all ranks; updates the running statistics.

    gathered: of `pack` on each rank, one after the other.
    """
    x = dense(x)
    weight, bias = launch.contiguous(weight, bias)
    mean, count = channel_values(x), x.new_empty(1, dtype=torch.float64)
    var = torch.empty_like(mean, dtype=dtypes.compute_dtype(x.dtype))
    cumulative = momentum is None
    _launch(
        sync_batch_norm_merge_kernel, x,
        (gathered.numel() // (3 * x.shape[1] + EXTRA), 0.0 if cumulative else momentum),
        (gathered, running_mean, running_var, num_batches_tracked if cumulative else None, mean, var, count),
        "BLOCK_RANKS",
    )  # fmt: skip
    y = torch.empty_like(x)
    if x.numel():
        grid, sizes, constants, _, _ = plan(x)
        launch.launch(
            launch.kept_launch(
                batch_norm_inference_kernel, grid, x.device, *sizes, eps, fused.negative_slope,
                ACT=fused.act, **constants,
            ),
            x, y, weight, bias, mean, var, None, None, fused.residual, fused.bits,
        )  # fmt: skip
    return y, mean, var, count


def backward_pack(dy, x, weight, bias, mean, var, count, eps, parameter_dtype, wanted, fused):
    """What a rank sends in the backward, [2, channels], or None, and the wanted ones of dweight, dbias and
    dresidual, which is dz.

    wanted: of dx, without which nothing is sent, and of those three.
    """
    want_dx, *want_parameters, want_dresidual = wanted
    x = dense(x)
    packed = x.new_empty((2, x.shape[1]), dtype=dtypes.compute_dtype(x.dtype)) if want_dx else None
    dweight, dbias = (x.new_empty(x.shape[1], dtype=parameter_dtype) if w else None for w in want_parameters)
    dresidual = torch.empty_like(x) if want_dresidual else None
    partial = channel_values(x, 2, 0)
    if x.numel():
        cut = plan(x)
        partial = channel_values(x, 2, cut.grid[1])
        dy, fused = in_format_of(x, dy), _in_format_of(x, fused)
        backward_sums(
            dy, x, cut, None, *launch.contiguous(weight, bias), mean, var, dresidual, partial, eps, fused
        )
    tensors = partial, var, count, packed, dweight, dbias
    _launch(sync_batch_norm_backward_pack_kernel, x, (partial.shape[1], eps), tensors, "BLOCK_SPLITS")
    return packed, dweight, dbias, dresidual


def backward(dy, x, weight, bias, mean, var, sums, dresidual, eps, fused):
    """dx of the sums over all ranks of what `backward_pack` packs, and its dresidual."""
    x = dense(x)
    dx = torch.empty_like(x)
    if x.numel():
        dy, fused = (dresidual, of_dz(fused)) if dresidual is not None else (dy, fused)
        dy, fused = in_format_of(x, dy), _in_format_of(x, fused)
        weight, bias = launch.contiguous(weight, bias)
        # already divided by the count of all ranks, which this one does not know
        partial, count = sums[:, None], 1
        backward_of_sums(dy, x, plan(x), dx, weight, bias, mean, var, None, None, partial, count, eps, fused)
    return dx


def _in_format_of(x, fused):
    if fused.residual is None:
        return fused
    return fused._replace(residual=in_format_of(x, fused.residual))
