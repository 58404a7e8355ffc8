"""Logic, shifts and fields of bits."""

from collections.abc import Callable
from functools import cache

import numpy as np

from ..operands import Operands
from ..parsing import Instruction
from ..values import SIGNED, Array, reader, size_of
from .table import Step, assign, compute, instruction

ONES = np.uint32(0xFFFFFFFF)


@instruction("and")
def both(i: Instruction, operands: Operands) -> Step:
    return compute(i, operands, np.bitwise_and)


@instruction("or")
def either(i: Instruction, operands: Operands) -> Step:
    return compute(i, operands, np.bitwise_or)


@instruction("xor")
def one_of(i: Instruction, operands: Operands) -> Step:
    return compute(i, operands, np.bitwise_xor)


@instruction("not")
def inverted(i: Instruction, operands: Operands) -> Step:
    return compute(i, operands, np.invert)


@instruction("lop3")
def any_logic(i: Instruction, operands: Operands) -> Step:
    """Makes the step of a function of three bits, given by its table."""
    table = int(i.operands[4], 0)

    def run(a: Array, b: Array, c: Array) -> Array:
        result = np.zeros(1, np.uint32)
        for k in range(8):
            if table >> k & 1:
                result = result | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
        return result

    return assign(i, operands, run, operands.sources(i.operands[1:4], 4))


@instruction("shl", "shr")
def shift(i: Instruction, operands: Operands) -> Step:
    size = size_of(i.type)
    sources = [operands.operand(i.operands[1], size), operands.operand(i.operands[2], 4)]
    return assign(i, operands, shifted(i.type, np.left_shift if i.base == "shl" else np.right_shift), sources)


@cache
def shifted(ty: str, by: np.ufunc) -> Callable[[Array, Array], Array]:
    """Returns a function that shifts bits by a 32-bit distance; all distances beyond the size act alike."""
    most, numbers = np.uint32(8 * size_of(ty)), reader(ty)

    def run(bits: Array, distance: Array) -> Array:
        x = numbers(bits)
        return by(x, np.minimum(distance, most).astype(x.dtype)).view(bits.dtype)

    return run


@instruction("shf", modifiers="l r wrap clamp")
def funnel_shift(i: Instruction, operands: Operands) -> Step:
    """Makes a step that shifts 64 bits and keeps 32."""
    left, wraps = i.parts[1] == "l", "wrap" in i.parts
    half = np.uint64(32)

    def run(low: Array, high: Array, distance: Array) -> Array:
        pair = (high.astype(np.uint64) << half) | low.astype(np.uint64)
        distance = (distance & np.uint32(31)) if wraps else np.minimum(distance, np.uint32(32))
        distance = distance.astype(np.uint64)
        return ((pair << distance >> half) if left else (pair >> distance)).astype(np.uint32)

    return assign(i, operands, run, operands.sources(i.operands[1:4], 4))


@instruction("bfe")
def extract_field(i: Instruction, operands: Operands) -> Step:
    """Makes a step that extracts a field of bits, sign-extended for signed types."""
    size = size_of(i.type)
    position, length = int(i.operands[2], 0), int(i.operands[3], 0)

    def run(x: Array) -> Array:
        field = (x >> x.dtype.type(position)) & x.dtype.type((1 << length) - 1)
        if i.type[0] == "s" and length:
            above = 8 * size - length
            signed = SIGNED[size]
            field = ((field << x.dtype.type(above)).view(signed) >> signed(above)).view(x.dtype)
        return field

    return assign(i, operands, run, [operands.operand(i.operands[1], size)])


@instruction("bfi")
def insert_field(i: Instruction, operands: Operands) -> Step:
    """Makes a step that inserts a field of bits."""
    position, length = int(i.operands[3], 0), int(i.operands[4], 0)
    mask = np.uint32(((1 << length) - 1) << position)

    def run(field: Array, others: Array) -> Array:
        return ((field << np.uint32(position)) & mask) | (others & (ONES ^ mask))

    return assign(i, operands, run, operands.sources(i.operands[1:3], 4))


@instruction("prmt")
def permute_bytes(i: Instruction, operands: Operands) -> Step:
    """Makes a step that picks four of eight bytes by nibbles, whose highest bit asks for the byte's sign."""

    def run(a: Array, b: Array, chosen: Array) -> Array:
        pair = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
        result = np.zeros(1, np.uint32)
        for k in range(4):
            nibble = (chosen >> np.uint32(4 * k)) & np.uint32(0xF)
            which = (nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8)
            byte = ((pair >> which) & np.uint64(0xFF)).astype(np.uint32)
            sign = np.where(byte & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
            result = result | (np.where(nibble & np.uint32(8), sign, byte) << np.uint32(8 * k))
        return result

    return assign(i, operands, run, operands.sources(i.operands[1:4], 4))


@instruction("clz")
def leading_zeros(i: Instruction, operands: Operands) -> Step:
    """Makes a step that counts the zeros above the highest one."""
    size = size_of(i.type)

    def run(x: Array) -> Array:
        for distance in (1, 2, 4, 8, 16, 32):  # makes all bits below the highest one ones
            x = x | (x >> x.dtype.type(distance))
        return np.bitwise_count(~x).astype(np.uint32)

    return assign(i, operands, run, [operands.operand(i.operands[1], size)])


@instruction("popc")
def count_ones(i: Instruction, operands: Operands) -> Step:
    """Makes a step that counts ones."""
    source = operands.operand(i.operands[1], size_of(i.type))
    return assign(i, operands, lambda x: np.bitwise_count(x).astype(np.uint32), [source])
