"""Conversions between types (cvt)."""

import numpy as np

from ..errors import Unsupported
from ..operands import Operands
from ..parsing import Instruction
from ..rounding import odd_single
from ..values import Array, is_float, reader, size_of, writer
from .table import Step, assign, instruction

TO_INTEGERS = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
PAIRS = ("bf16x2", "f16x2")


@instruction("cvt", modifiers="rn rzi rni rmi rpi ftz")
def convert(i: Instruction, operands: Operands) -> Step:
    to, of = i.parts[-2:]
    if to in PAIRS:
        return pack(i, operands, to.removesuffix("x2"))
    size = operands.sizes[operands.register(i.operands[0])]
    whole = next((TO_INTEGERS[part] for part in i.parts[1:-2] if part in TO_INTEGERS), None)
    if is_float(of) and not is_float(to) and whole is None:
        raise Unsupported(f"conversion to an integer; executed are those with {', '.join(TO_INTEGERS)}")
    numbers, bits = reader(of, i.flushes), writer(to, size, i.flushes)

    def run(x: Array) -> Array:
        value = numbers(x)
        if to == "bf16" and of == "f64":
            value = odd_single(value)
        return bits(value if whole is None or value.dtype.kind != "f" else whole(value))

    return assign(i, operands, run, [operands.operand(i.operands[1], max(size_of(of), 2))])


def pack(i: Instruction, operands: Operands, narrow: str) -> Step:
    """Two float32 numbers as one register of 16-bit ones, the first above."""
    numbers, bits = reader("f32", i.flushes), writer(narrow, 4)

    def run(high: Array, low: Array) -> Array:
        return (bits(numbers(high)) << np.uint32(16)) | bits(numbers(low))

    return assign(i, operands, run, operands.sources(i.operands[1:], 4))
