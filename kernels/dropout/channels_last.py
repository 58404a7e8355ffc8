"""Dropout of channels-last elements that each have their own decision.

The decision is that of the logical index, in which positions follow each other. A Philox call decides of a
few positions of one channel, which lie `channels` apart in memory: a tile of both is drawn as calls and
loaded as it lies.
"""

import triton
import triton.language as tl

from normreg.kernels.device.random import keep_mask, load_seed, select
from normreg.kernels.device.statistics import compute_dtype


@triton.jit(do_not_specialize=["seed_ptr", "seed", "channels", "calls", "keep_threshold"])
def dropout_channels_last_kernel(
    x_ptr,  # [samples, positions, channels]; so is y, possibly in the same memory
    y_ptr,
    seed_ptr,  # int64 scalar, added to `seed`
    seed: tl.int64,
    channels,  # in vectors
    calls,  # of the positions of a channel
    keep_threshold: tl.int64,
    scale: tl.float64,
    shift: tl.float64,
    dropped: tl.float64,
    BITS: tl.constexpr,
    TILE: tl.constexpr,  # rows: channels; cols: positions
):
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty)
    FIELDS: tl.constexpr = 128 // BITS
    CHANNELS: tl.constexpr = TILE.rows
    CALLS: tl.constexpr = TILE.cols // FIELDS
    channels = channels.to(tl.int64) * TILE.vector
    channel_blocks = tl.cdiv(channels, CHANNELS).to(tl.int32)
    call_blocks = tl.cdiv(calls, CALLS)

    blocks = tl.program_id(0) // channel_blocks
    sample = (blocks // call_blocks).to(tl.int64)
    channel = (tl.program_id(0) % channel_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    first_call = (blocks % call_blocks) * CALLS
    call = first_call + tl.arange(0, CALLS)
    position = first_call * FIELDS + tl.arange(0, TILE.cols)
    offsets = (sample * calls * FIELDS + position)[None, :] * channels + channel[:, None]
    mask = (channel < channels)[:, None] & (position < calls * FIELDS)[None, :]
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    calls_of_channel = (sample * channels + channel)[:, None] * calls + call[None, :]
    keep = keep_mask(load_seed(seed_ptr, seed), calls_of_channel, keep_threshold, BITS)
    y = select(x, keep, scale, shift, dropped)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)
