"""Dropout: y = x scale where the element is kept, else 0, and dx = dy scale under the same mask.

    keep_threshold = 2^bits - round(p 2^bits)       scale = 2^bits / keep_threshold

An element is kept with probability keep_threshold / 2^bits exactly, so that E[y] = x for the p that was
rounded, not the p that was asked for. The mask is regenerated from the seed (`random.keep_mask`); forward
and backward are one kernel.
"""

import torch
import triton
import triton.language as tl

from . import launch
from .random import keep_mask


@triton.jit(do_not_specialize=["seed", "elements_in_vectors", "keep_threshold"])
def dropout_kernel(
    x_ptr, y_ptr,                # [elements], possibly the same memory
    seed_ptr,                    # int64 scalar, or None where `seed` is it
    seed: tl.int64,
    elements_in_vectors,
    keep_threshold: tl.int64, scale: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr, BITS: tl.constexpr, CALLS: tl.constexpr,
):  # fmt: skip
    elements = elements_in_vectors.to(tl.int64) * VECTOR
    BLOCK: tl.constexpr = CALLS * (128 // BITS)
    first = tl.program_id(0).to(tl.int64)
    offsets = first * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < elements
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    if seed_ptr is not None:
        seed = tl.load(seed_ptr)
    keep = keep_mask(seed, first * CALLS + tl.arange(0, CALLS), keep_threshold, BITS)
    y = tl.where(keep, x * tl.full([], scale, COMPUTE_DTYPE), 0.0)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


def dropout(x, p, seed, out=None):
    """Dropout of contiguous x into `out`, or into a new tensor. `seed` is an int or an int64 tensor."""
    elements = x.numel()
    bits = launch.dropout_bits(x.dtype, p)
    dropped = 2**bits if p == 1 else min(max(round(p * 2**bits), 1), 2**bits - 1)
    keep_threshold = 2**bits - dropped
    calls = launch.dropout_calls()
    y = torch.empty_like(x) if out is None else out
    vector = launch.vector(elements)
    seed_ptr, seed = (seed, 0) if isinstance(seed, torch.Tensor) else (None, seed)
    launch.launch(
        dropout_kernel, (triton.cdiv(elements, calls * (128 // bits)),), x.device,
        x, y, seed_ptr, seed, elements // vector, keep_threshold,
        2**bits / keep_threshold if keep_threshold else 0.0,
        COMPUTE_DTYPE=launch.triton_dtype(launch.compute_dtype(x.dtype)), VECTOR=vector,
        BITS=bits, CALLS=calls, num_warps=launch.DROPOUT_NUM_WARPS,
    )  # fmt: skip
    return y
