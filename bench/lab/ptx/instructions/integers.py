"""Products and quotients of integers that numpy's operators do not have."""

from collections.abc import Callable
from functools import cache

import numpy as np

from ..errors import Unsupported
from ..operands import Operands
from ..parsing import Instruction
from ..values import SIGNED, UINT, Array, reader, size_of
from .table import Step, assign, compute, instruction


def multiplied_wide(i: Instruction, operands: Operands) -> Step:
    """Makes a step that multiplies to twice the size, and adds a third operand of that size."""
    size = size_of(i.type)
    sources = operands.sources(i.operands[1:3], size) + operands.sources(i.operands[3:], 2 * size)
    return assign(i, operands, wide_product(i.type), sources)


@cache
def wide_product(ty: str) -> Callable[..., Array]:
    """Returns a function of bits: their product, plus a third number of twice the size."""
    size = size_of(ty)
    numbers, wide, bits = reader(ty), (SIGNED if ty[0] == "s" else UINT)[2 * size], UINT[2 * size]

    def run(a: Array, b: Array, c: Array | None = None) -> Array:
        product = (numbers(a).astype(wide) * numbers(b).astype(wide)).view(bits)
        return product if c is None else product + c

    return run


def multiplied_high(i: Instruction, operands: Operands) -> Step:
    """Makes a step that keeps the upper half of a product."""
    if i.type in ("u32", "s32"):
        return compute(i, operands, high_of_32)
    if i.type == "u64":
        return compute(i, operands, high_of_64)
    raise Unsupported("mul.hi; executed are u32, s32 and u64")


def high_of_32(a: Array, b: Array) -> Array:
    """The upper 32 bits of products of 32-bit integers."""
    wide = np.int64 if a.dtype.kind == "i" else np.uint64
    return (a.astype(wide) * b.astype(wide)) >> wide(32)


def high_of_64(a: Array, b: Array) -> Array:
    """The upper 64 bits of products of 64-bit integers."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    middle = a1 * b0 + (a0 * b0 >> half)
    other = a0 * b1 + (middle & low)
    return a1 * b1 + (middle >> half) + (other >> half)


def divided(a: Array, b: Array) -> Array:
    """Quotients rounded towards zero; all ones where the divisor is 0."""
    zero = b == 0
    b = np.where(zero, 1, b).astype(b.dtype)
    quotient = a // b
    if a.dtype.kind == "i":  # numpy rounds towards minus infinity
        quotient += (quotient * b != a) & ((a < 0) != (b < 0))
    return np.where(zero, -1 if a.dtype.kind == "i" else ~a.dtype.type(0), quotient).astype(a.dtype)


@instruction("rem")
def remainder(i: Instruction, operands: Operands) -> Step:
    return compute(i, operands, left_over)


def left_over(a: Array, b: Array) -> Array:
    """Remainders with the sign of the dividend; the dividend where the divisor is 0."""
    zero = b == 0
    return np.where(zero, a, np.fmod(a, np.where(zero, 1, b).astype(b.dtype)))
