"""The one source of every dropout mask.

    keep[i] = bits(seed, i) < keep_threshold

i is the index of an element, or of a group of elements that share a decision.
`bits` is a field of the 128 bits that Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011) yields for the key `seed` and the counter `i // fields`. It is a function of the
seed and of the logical index alone: tiles, layout and launch cannot change a mask.
"""

import triton
import triton.language as tl

GROUP_BITS = 32  # random bits of a decision that `keep_at` makes


@triton.jit
def load_seed(seed_ptr, seed):
    """The seed of a mask, in the two parts that kernels take."""
    if seed_ptr is not None:
        seed += tl.load(seed_ptr)
    return seed


@triton.jit
def philox(seed, call):
    """The four random words of each call."""
    zero = tl.zeros_like(call).to(tl.uint32)
    low = (call & 0xFFFFFFFF).to(tl.uint32)
    high = (call >> 32).to(tl.uint32)
    return tl.philox(seed, low, high, zero, zero)


@triton.jit
def keep_mask(seed, call, keep_threshold, BITS: tl.constexpr):
    """Keep-mask of the elements of the given Philox calls: [CALLS] -> [CALLS * 128 / BITS].

    Element `call * (128 / BITS) + j` is kept when field j of the call is below `keep_threshold`,
    that is with probability keep_threshold / 2^BITS. BITS is 16 or 32.
    """
    r0, r1, r2, r3 = philox(seed, call)
    fields = tl.interleave(tl.interleave(r0, r2), tl.interleave(r1, r3))  # r0 r1 r2 r3 of each call
    keep_threshold = keep_threshold.to(tl.uint32)
    if BITS == 16:
        fields = tl.interleave(fields << 16, fields)
        keep_threshold = keep_threshold << 16
    return fields < keep_threshold


@triton.jit
def keep_at(seed, index, keep_threshold):
    """`keep_mask` of 32 bits at the given int64 indices: a call for each, where decisions are few."""
    r0, r1, r2, r3 = philox(seed, index >> 2)
    field = index & 3
    bits = tl.where(field < 2, tl.where(field == 0, r0, r1), tl.where(field == 2, r2, r3))
    return bits < keep_threshold.to(tl.uint32)


@triton.jit
def keep_in_rows(seed, row, cols, first_col, keep_threshold, BITS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """`keep_mask` [rows, BLOCK_COLS] of elements of rows, each of which begins with a call of its own.

    first_col is a multiple of BLOCK_COLS, and that of 128 / BITS. Where cols is a multiple of it, too,
    element i of the rows has the decision that it has in `keep_mask`.
    """
    FIELDS: tl.constexpr = 128 // BITS
    call = row[:, None] * tl.cdiv(cols, FIELDS) + first_col // FIELDS
    return keep_mask(seed, call + tl.arange(0, BLOCK_COLS // FIELDS)[None, :], keep_threshold, BITS)


@triton.jit
def select(x, keep, scale, shift, dropped):
    """y"""
    y = x * tl.full([], scale, x.dtype) - tl.full([], shift, x.dtype)  # -0 - 0 is -0; -0 + 0 is not
    return tl.where(keep, y, tl.full([], dropped, x.dtype))
