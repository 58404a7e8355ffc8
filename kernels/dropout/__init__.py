"""Dropout: y = scale x - shift where kept, else dropped, and dx = scale dy where kept, else 0.

    keep_threshold = 2^bits - round(p 2^bits)       keep = keep_threshold / 2^bits

                scale                                       shift                   dropped
    dropout     1 / keep                                    0                       0
    unscaled    1                                           0                       0
    alpha       a = (keep (1 + alpha^2 (1 - keep)))^-1/2    a alpha (1 - keep)      a alpha keep

An element is kept with the probability `keep` exactly, and all three follow from it: E[y] = x in the first
row, and mean 0 and variance 1 are kept in the third, for the p that was rounded, not the p that was asked
for. Where p is 1, y is 0, as torch's is.

The elements of a group share one decision: a channel of a sample, or a sample. The mask is a function of the
seed and of the logical index of the element or group (`random`); forward and backward are one kernel. No mask
is stored: 1 element read and 1 written each way, and dropped groups of contiguous elements are not read.
"""

import torch
import triton
import triton.language as tl

from normreg.kernels import dtypes, launch, tiling
from normreg.kernels.device.random import GROUP_BITS, keep_at, keep_mask, load_seed, seed_arguments

ALPHA = -1.7580993408473766  # SELU's value at minus infinity


@triton.jit
def select(x, keep, scale, shift, dropped):
    y = x * tl.full([], scale, x.dtype) - tl.full([], shift, x.dtype)  # -0 - 0 is -0; -0 + 0 is not
    return tl.where(keep, y, tl.full([], dropped, x.dtype))


@triton.jit(do_not_specialize=["seed_ptr", "seed", "elements_in_vectors", "keep_threshold"])
def dropout_kernel(
    x_ptr, y_ptr,                # [elements], possibly the same memory
    seed_ptr,                    # int64 scalar, added to `seed`
    seed: tl.int64,
    elements_in_vectors,
    keep_threshold: tl.int64, scale: tl.float64, shift: tl.float64, dropped: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr, BITS: tl.constexpr, CALLS: tl.constexpr,
):  # fmt: skip
    elements = elements_in_vectors.to(tl.int64) * VECTOR
    BLOCK: tl.constexpr = CALLS * (128 // BITS)
    first = tl.program_id(0).to(tl.int64)
    offsets = first * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < elements
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    seed = load_seed(seed_ptr, seed)
    keep = keep_mask(seed, first * CALLS + tl.arange(0, CALLS), keep_threshold, BITS)
    y = select(x, keep, scale, shift, dropped)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["seed_ptr", "seed", "groups", "positions", "keep_threshold"])
def dropout_grouped_kernel(
    x_ptr, y_ptr,                # [samples, groups, positions], possibly the same memory
    seed_ptr,                    # int64 scalar, added to `seed`
    seed: tl.int64,
    groups, positions,           # of a sample; the contiguous one in vectors
    keep_threshold: tl.int64, scale: tl.float64, shift: tl.float64, dropped: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, GROUPS_LAST: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
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


def scaled(keep):
    """(scale, shift, dropped) of dropout."""
    return 1 / keep, 0.0, 0.0


def unscaled(keep):
    return 1.0, 0.0, 0.0


def alpha(keep):
    a = (keep * (1 + ALPHA**2 * (1 - keep))) ** -0.5
    return a, a * ALPHA * (1 - keep), a * ALPHA * keep


def layer_constants(p, bits, constants, linear):
    """keep_threshold, scale, shift and dropped; `linear` without the two that do not depend on x."""
    cut = 2**bits if p == 1 else min(max(round(p * 2**bits), 1), 2**bits - 1)
    keep_threshold = 2**bits - cut
    scale, shift, dropped = constants(keep_threshold / 2**bits) if keep_threshold else (0.0, 0.0, 0.0)
    return (keep_threshold, scale, 0.0, 0.0) if linear else (keep_threshold, scale, shift, dropped)


@launch.planned
def elementwise_launch(elements, dtype, p, constants, linear, device):
    bits, calls = tiling.elements.dropout_bits(dtype, p), tiling.elements.dropout_calls()
    vector = tiling.hardware.vector(elements)
    return launch.Launch(
        dropout_kernel, (triton.cdiv(elements, calls * (128 // bits)),), device,
        elements // vector, *layer_constants(p, bits, constants, linear),
        COMPUTE_DTYPE=dtypes.triton_dtype(dtypes.compute_dtype(dtype)), VECTOR=vector, BITS=bits, CALLS=calls,
        num_warps=tiling.elements.DROPOUT_NUM_WARPS,
    )  # fmt: skip


@launch.planned
def grouped_launch(samples, groups, positions, groups_last, dtype, p, constants, linear, device):
    vector = tiling.hardware.vector(groups if groups_last else positions)
    in_vectors = (groups // vector, positions) if groups_last else (groups, positions // vector)
    tile = tiling.elements.dropout_grouped_tile(groups, positions, groups_last)
    blocks = triton.cdiv(groups, tile.groups) * triton.cdiv(positions, tile.positions)
    return launch.Launch(
        dropout_grouped_kernel, (samples * blocks,), device,
        *in_vectors, *layer_constants(p, GROUP_BITS, constants, linear),
        COMPUTE_DTYPE=dtypes.triton_dtype(dtypes.compute_dtype(dtype)), GROUPS_LAST=groups_last,
        VECTOR=vector, BLOCK_GROUPS=tile.groups, BLOCK_POSITIONS=tile.positions,
        num_warps=tiling.elements.DROPOUT_NUM_WARPS,
    )  # fmt: skip


def dropout(x, p, seed, out=None, leading=None, constants=scaled, linear=False):
    """Dropout of x into `out`, or into a new tensor like it. `seed` is an int or an int64 tensor.

    leading: elements whose indices in the first `leading` dimensions are the same share a decision; None
        where each has its own. x is contiguous or, where decisions are shared, channels-last.
    constants: `scaled`, `unscaled` or `alpha`. linear: without shift and dropped, as dx is.
    """
    y = torch.empty_like(x) if out is None else out
    seed_ptr, seed = seed_arguments(seed, x.device)
    positions = 1 if leading is None else x.shape[leading:].numel()
    rule = (x.dtype, p, constants, linear, x.device)
    if positions == 1:
        plan = elementwise_launch(x.numel(), *rule)
    else:
        groups_last = leading == 2 and not x.is_contiguous()
        samples, groups = (x.shape[0], x.shape[1]) if groups_last else (1, x.shape[:leading].numel())
        plan = grouped_launch(samples, groups, positions, groups_last, *rule)
    launch.launch(plan, x, y, seed_ptr, numbers=(seed,))
    return y
