"""Device helpers on a row that is held in parts: tiles beside each other.

They take fewer registers than one tile as large, and their widths add up to more than powers of two. Those of
16 bits can stay packed, two elements in a register, and are then unpacked anew for every sweep over the row.
Only the last part can be short of columns.
"""

import triton
import triton.language as tl


@triton.jit
def packed(x):
    """Elements of 16 bits, two in a word."""
    low, high = tl.split(x.to(tl.int16, bitcast=True).reshape(x.shape[0] // 2, 2))
    return (low.to(tl.int32) & 0xFFFF) | (high.to(tl.int32) << 16)


@triton.jit
def unpacked(words, after, cols, DTYPE: tl.constexpr):
    """The elements, which the compiler can unpack neither before it has `after` nor once for all sweeps."""
    words ^= tl.minimum(cols, 0) & after.to(tl.int32, bitcast=True)  # 0, and only we know
    x = tl.join(words.to(tl.int16), (words >> 16).to(tl.int16))
    return x.reshape(words.shape[0] * 2).to(DTYPE, bitcast=True)


@triton.jit
def columns(i: tl.constexpr, BLOCK_COLS: tl.constexpr):
    return tl.arange(0, BLOCK_COLS) + i * BLOCK_COLS


@triton.jit
def within(part, i: tl.constexpr, cols, PARTS: tl.constexpr):
    """Part i, 0 beyond the row."""
    if i == PARTS - 1:
        part = tl.where(columns(i, part.shape[0]) < cols, part, 0.0)
    return part


@triton.jit
def load_part(ptr, i: tl.constexpr, cols, PARTS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """Part i, 0 beyond the row."""
    col = columns(i, BLOCK_COLS)
    if i == PARTS - 1:
        part = tl.load(ptr + col, mask=col < cols, other=0.0)
    else:
        part = tl.load(ptr + col)
    return part


@triton.jit
def load_parts(ptr, cols, PACKED: tl.constexpr, PARTS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    parts = ()
    for i in tl.static_range(PARTS):
        part = load_part(ptr, i, cols, PARTS, BLOCK_COLS)
        parts += (packed(part) if PACKED else part,)
    return parts


@triton.jit
def converted(part, after, cols, DTYPE: tl.constexpr, COMPUTE_DTYPE: tl.constexpr, PACKED: tl.constexpr):
    if PACKED:
        part = unpacked(part, after, cols, DTYPE)
    return part.to(COMPUTE_DTYPE)


@triton.jit
def store_part(ptr, part, i: tl.constexpr, cols, PARTS: tl.constexpr):
    col = columns(i, part.shape[0])
    part = part.to(ptr.dtype.element_ty)
    if i == PARTS - 1:
        tl.store(ptr + col, part, mask=col < cols)
    else:
        tl.store(ptr + col, part)
