"""Device helpers on words: two neighbouring elements of 16 bits in one integer of 32."""

import triton
import triton.language as tl


@triton.jit
def words_at(ptr):
    """The pointer to words of elements of 16 bits that start at a multiple of 4 bytes."""
    return ptr.to(tl.pointer_type(tl.int32), bitcast=True)


@triton.jit
def widened(x, DTYPE: tl.constexpr):
    """x in DTYPE; of bfloat16, the upper half of a float32, in fewer instructions than a conversion."""
    if x.dtype == tl.bfloat16 and tl.float32 == DTYPE:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.constexpr_function
def in_pairs(shape):
    return [*shape[:-1], shape[-1] // 2, 2]


@triton.constexpr_function
def one_by_one(shape):
    return [*shape[:-1], 2 * shape[-1]]


@triton.jit
def packed(x):
    """The words [..., n / 2] of elements of 16 bits [..., n]."""
    low, high = tl.split(tl.reshape(x.to(tl.int16, bitcast=True), in_pairs(x.shape)))
    return (low.to(tl.int32) & 0xFFFF) | (high.to(tl.int32) << 16)


@triton.jit
def unpacked(words, DTYPE: tl.constexpr, COMPUTE_DTYPE: tl.constexpr):
    """The elements of words, of DTYPE, in COMPUTE_DTYPE."""
    if tl.bfloat16 == DTYPE and tl.float32 == COMPUTE_DTYPE:
        pairs = tl.join(words << 16, words & -65536).to(tl.float32, bitcast=True)
    else:
        pairs = tl.join(words.to(tl.int16), (words >> 16).to(tl.int16)).to(DTYPE, bitcast=True)
    return tl.reshape(pairs, one_by_one(words.shape)).to(COMPUTE_DTYPE)


@triton.jit
def kept_packed(words, zero, after):
    """The words, which the compiler can unpack neither before it has `after` nor once for all their uses.

    zero: an integer that the compiler cannot know to be 0.
    """
    return words ^ (zero & after.to(tl.int32, bitcast=True))
