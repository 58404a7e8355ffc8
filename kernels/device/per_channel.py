"""Device code for what there is one of a channel: statistics, parameters, gradients, partial results.

A program computes with such values in the dtype of its arithmetic on elements, and saves a mean as float64. A
split leaves its partial results in a tensor [kinds, splits, channels]; every program that needs them merges
them in the same order.
"""

import triton
import triton.language as tl

from normreg.kernels.device.statistics import Mean, compute_dtype, divide


@triton.jit
def load_channels(ptr, offset, mask, DTYPE: tl.constexpr, DEFAULT: tl.constexpr = 0.0):
    """A value for each channel, DEFAULT where the tensor is absent."""
    if ptr is None:
        return tl.full(offset.shape, DEFAULT, DTYPE)
    else:
        return tl.load(ptr + offset, mask=mask, other=0.0).to(DTYPE)


@triton.jit
def load_mean(ptr, channel, mask, DTYPE: tl.constexpr):
    """A `Mean` for each channel."""
    mean = tl.load(ptr + channel, mask=mask, other=0.0)
    high = mean.to(DTYPE)
    if mean.dtype == tl.float64:
        return Mean(high, (mean - high.to(tl.float64)).to(DTYPE))
    else:
        return Mean(high, tl.zeros_like(high))


@triton.jit
def store_channels(ptr, channel, value, mask):
    """Stores a float64 for each channel in the tensor's own dtype."""
    if ptr.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)  # the interpreter cannot cast float64 to bfloat16
    tl.store(ptr + channel, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def store_mean(ptr, channel, mean, mask):
    """Stores a `Mean` for each channel as one float64."""
    tl.store(ptr + channel, mean.high.to(tl.float64) + mean.low.to(tl.float64), mask=mask)


@triton.jit
def copy_channels(from_ptr, to_ptr, channel, mask):
    tl.store(to_ptr + channel, tl.load(from_ptr + channel, mask=mask, other=0.0), mask=mask)


@triton.jit
def store_gradients(per_channel, dweight, dbias, channel, mask):
    """Stores those of the parameters' gradients that are wanted."""
    if per_channel.dbias is not None:
        store_channels(per_channel.dbias, channel, dbias, mask)
    if per_channel.dweight is not None:
        store_channels(per_channel.dweight, channel, dweight, mask)


@triton.jit
def count_batch(num_batches_tracked_ptr, program):
    """Program 0 adds 1 to the count of batches, where there is one."""
    if num_batches_tracked_ptr is not None:
        if program == 0:
            tl.store(num_batches_tracked_ptr, tl.load(num_batches_tracked_ptr) + 1)


@triton.jit
def average_factor(momentum, num_batches_tracked_ptr):
    """The weight of this batch in the running statistics: momentum or, given the count, that of a mean."""
    factor = tl.full([], momentum, tl.float64)
    if num_batches_tracked_ptr is not None:
        factor = 1 / tl.load(num_batches_tracked_ptr).to(tl.float64)
    return factor


@triton.jit
def update_running(running_ptr, value, factor, channel, mask):
    """running = (1 - factor) running + factor value; value is a pair like `Mean`.

    In float32, unless one of them is float64, which is 64 times slower on many GPUs. What 1 - factor lacks is
    added, or the weights would not add up to 1.
    """
    DTYPE: tl.constexpr = compute_dtype(value.high.dtype, running_ptr.dtype.element_ty)
    high, low = value.high.to(DTYPE), value.low.to(DTYPE)
    factor = tl.zeros_like(high) + factor.to(DTYPE)
    kept = 1.0 - factor
    running = load_channels(running_ptr, channel, mask, DTYPE)
    lost = tl.where(tl.abs(running) < float("inf"), ((1.0 - kept) - factor) * running, 0.0)
    running = tl.fma(kept, running, tl.fma(factor, high, tl.fma(factor, low, lost)))
    store_channels(running_ptr, channel, running, mask)


@triton.jit
def store_statistics(per_channel, mean, m2, count, factor, channel, mask):
    """Stores mean and var, which the backward needs, and updates the running statistics, where given."""
    if per_channel.mean is not None:
        store_mean(per_channel.mean, channel, mean, mask)
        store_channels(per_channel.var, channel, divide(m2, count), mask)
    if per_channel.running_mean is not None:
        update_running(per_channel.running_mean, mean, factor, channel, mask)
        unbiased = Mean(divide(m2, count - 1), tl.zeros_like(m2))
        update_running(per_channel.running_var, unbiased, factor, channel, mask)


@triton.jit
def store_partial(ptr, kind, value, channel, mask, channels):
    """Stores this program's partial result of one kind into [kinds, splits, channels]."""
    row = (kind * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    tl.store(ptr + row * channels + channel, value, mask=mask)


@triton.jit
def load_partials(ptr, kind, first, channel, mask, splits, channels, BLOCK_SPLITS: tl.constexpr):
    """The partial results of one kind and BLOCK_SPLITS splits, of [kinds, splits, channels]."""
    split = first + tl.arange(0, BLOCK_SPLITS)[:, None]
    offsets = (kind * splits + split).to(tl.int64) * channels + channel[None, :]
    return tl.load(ptr + offsets, mask=(split < splits) & mask[None, :], other=0.0)


@triton.jit
def sum_partials(ptr, channel, mask, splits, channels, BLOCK_SPLITS: tl.constexpr):
    """The sums of both kinds over the splits, for each channel, in the same order every time."""
    first_kind = tl.zeros([BLOCK_SPLITS, channel.shape[0]], ptr.dtype.element_ty)
    second_kind = tl.zeros([BLOCK_SPLITS, channel.shape[0]], ptr.dtype.element_ty)
    for first in range(0, splits, BLOCK_SPLITS):
        first_kind += load_partials(ptr, 0, first, channel, mask, splits, channels, BLOCK_SPLITS)
        second_kind += load_partials(ptr, 1, first, channel, mask, splits, channels, BLOCK_SPLITS)
    return tl.sum(first_kind, 0), tl.sum(second_kind, 0)
