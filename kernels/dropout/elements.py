"""Dropout of elements that each have their own decision."""

import triton
import triton.language as tl

from normreg.kernels.device.random import keep_mask, load_seed, select
from normreg.kernels.device.statistics import compute_dtype


@triton.jit(do_not_specialize=["seed_ptr", "seed", "elements_in_vectors", "keep_threshold"])
def dropout_kernel(
    x_ptr,  # [elements]; so is y, possibly in the same memory
    y_ptr,
    seed_ptr,  # int64 scalar, added to `seed`
    seed: tl.int64,
    elements_in_vectors,
    keep_threshold: tl.int64,
    scale: tl.float64,
    shift: tl.float64,
    dropped: tl.float64,
    VECTOR: tl.constexpr,
    BITS: tl.constexpr,
    CALLS: tl.constexpr,
):
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty)
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
