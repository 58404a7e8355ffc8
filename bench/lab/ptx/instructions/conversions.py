"""Conversions between types (cvt)."""

from collections.abc import Callable
from functools import cache

import numpy as np

from ..errors import Unsupported
from ..operands import Operands
from ..parsing import Instruction
from ..rounding import odd_single
from ..values import Array, float8_bits, is_float, reader, size_of, writer
from .table import Step, assign, instruction

TO_INTEGERS = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
PAIRS = ("bf16x2", "f16x2")
FLOAT8_PAIR = "e4m3x2"


@instruction("cvt", modifiers=f"rn rzi rni rmi rpi ftz satfinite {FLOAT8_PAIR}")
def convert(i: Instruction, operands: Operands) -> Step:
    to, of = i.parts[-2:]
    if to == FLOAT8_PAIR:
        return assign(i, operands, float8_pair, operands.sources(i.operands[1:], 4))
    if "satfinite" in i.parts:
        raise Unsupported(f"satfinite; executed is that of {FLOAT8_PAIR}")
    if to in PAIRS:
        function = pair(to.removesuffix("x2"), i.flushes)
        return assign(i, operands, function, operands.sources(i.operands[1:], 4))
    size = operands.sizes[operands.register(i.operands[0])]
    source = operands.operand(i.operands[1], max(size_of(of), 2))
    return assign(i, operands, conversion(i.parts, size), [source])


@cache
def conversion(parts: tuple[str, ...], size: int) -> Callable[[Array], Array]:
    """Returns a function from bits to a register of `size` bytes, by the parts of an opcode."""
    _, *how, to, of = parts
    numbers, bits = reader(of, "ftz" in how), writer(to, size, "ftz" in how)
    whole = next((TO_INTEGERS[part] for part in how if part in TO_INTEGERS), None)
    if is_float(of) and whole is not None:
        return lambda x: bits(whole(numbers(x)))
    if is_float(of) and not is_float(to):
        raise Unsupported(f"conversion to an integer; executed are those with {', '.join(TO_INTEGERS)}")
    if to == "bf16" and of == "f64":
        return lambda x: bits(odd_single(numbers(x)))
    return lambda x: bits(numbers(x))


@cache
def pair(narrow: str, ftz: bool) -> Callable[[Array, Array], Array]:
    """Returns a function from two float32 numbers to a register of two 16-bit ones, the first one above."""
    numbers, bits = reader("f32", ftz), writer(narrow, 4)
    return lambda high, low: (bits(numbers(high)) << np.uint32(16)) | bits(numbers(low))


def float8_pair(high: Array, low: Array) -> Array:
    """A register of 16 bits with two float32 numbers as e4m3, the first one above."""
    above, below = (float8_bits(x.view(np.float32)).astype(np.uint16) for x in (high, low))
    return (above << np.uint16(8)) | below
