"""Dropout of groups of elements that share a decision: a sample, or a channel of a sample."""

import triton
import triton.language as tl

from normreg.kernels.device.random import keep_at, load_seed, select
from normreg.kernels.device.statistics import compute_dtype


@triton.jit(do_not_specialize=["seed_ptr", "seed", "groups", "positions", "keep_threshold"])
def dropout_grouped_kernel(
    x_ptr,  # [samples, groups, positions]; so is y, possibly in the same memory
    y_ptr,
    seed_ptr,  # int64 scalar, added to `seed`
    seed: tl.int64,
    groups,
    positions,  # of a sample, like groups; the contiguous one in vectors
    keep_threshold: tl.int64,
    scale: tl.float64,
    shift: tl.float64,
    dropped: tl.float64,
    GROUPS_LAST: tl.constexpr,
    TILE: tl.constexpr,  # rows: groups; cols: positions
):
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty)
    BLOCK_GROUPS: tl.constexpr = TILE.rows
    BLOCK_POSITIONS: tl.constexpr = TILE.cols
    VECTOR: tl.constexpr = TILE.vector
    groups = groups.to(tl.int64) * (VECTOR if GROUPS_LAST else 1)
    positions = positions.to(tl.int64) * (1 if GROUPS_LAST else VECTOR)
    stride_group = 1 if GROUPS_LAST else positions
    stride_position = groups if GROUPS_LAST else 1
    position_blocks = tl.cdiv(positions, BLOCK_POSITIONS).to(tl.int32)
    group_blocks = tl.cdiv(groups, BLOCK_GROUPS).to(tl.int32)

    blocks = tl.program_id(0) // position_blocks
    sample = (blocks // group_blocks).to(tl.int64)
    group = (blocks % group_blocks).to(tl.int64) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    position = (tl.program_id(0) % position_blocks).to(tl.int64) * BLOCK_POSITIONS
    position += tl.arange(0, BLOCK_POSITIONS)
    offsets = group[:, None] * stride_group + position[None, :] * stride_position
    offsets += sample * groups * positions
    mask = (group < groups)[:, None] & (position < positions)[None, :]
    seed = load_seed(seed_ptr, seed)
    keep = keep_at(seed, sample * groups + group, keep_threshold)[:, None]
    # a mask that differs from one element to the next would split a 16-byte access
    x = tl.load(x_ptr + offsets, mask=mask if GROUPS_LAST else mask & keep, other=0.0)
    y = select(x.to(COMPUTE_DTYPE), keep, scale, shift, dropped)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)
