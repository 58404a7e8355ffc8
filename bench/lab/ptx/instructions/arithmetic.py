"""Sums, products, quotients and extremes of numbers of one type, and fused multiply-adds."""

from collections.abc import Callable

import numpy as np

from ..errors import Unsupported
from ..operands import Operands
from ..parsing import Instruction
from ..values import Array, is_float, reader, writer
from .integers import divided, multiplied_high, multiplied_wide
from .table import Step, assign, compute, instruction
from .transcendental import approximate_division


def is_mixed(i: Instruction) -> bool:
    """Whether an instruction, of sm_100, has 16-bit operands, a float32 last one and result."""
    return i.parts[-2] == "f32" and i.type in ("f16", "bf16")


def mixed(i: Instruction, operands: Operands, function: Callable[..., Array]) -> Step:
    """A step of an instruction whose first operands are 16-bit."""
    narrow, wide, bits = reader(i.type), reader("f32"), writer("f32", 4)
    *first, last = i.operands[1:]
    sources = [*operands.sources(first, 2), operands.operand(last, 4)]

    def run(*x: Array) -> Array:
        numbers = [narrow(v).astype(np.float64) for v in x[:-1]]
        return bits(function(*numbers, wide(x[-1]).astype(np.float64)))

    return assign(i, operands, run, sources)


@instruction("add")
def add(i: Instruction, operands: Operands) -> Step:
    return mixed(i, operands, np.add) if is_mixed(i) else compute(i, operands, np.add)


@instruction("sub")
def subtract(i: Instruction, operands: Operands) -> Step:
    return mixed(i, operands, np.subtract) if is_mixed(i) else compute(i, operands, np.subtract)


@instruction("mul")
def multiply(i: Instruction, operands: Operands) -> Step:
    if "wide" in i.parts:
        return multiplied_wide(i, operands)
    if "hi" in i.parts:
        return multiplied_high(i, operands)
    return compute(i, operands, np.multiply)


@instruction("mad")
def multiply_add(i: Instruction, operands: Operands) -> Step:
    if "wide" in i.parts:
        return multiplied_wide(i, operands)
    if "lo" not in i.parts:
        raise Unsupported("mad; executed are mad.lo and mad.wide")
    return compute(i, operands, lambda a, b, c: a * b + c)


@instruction("fma")
def fused(i: Instruction, operands: Operands) -> Step:
    if is_mixed(i):
        return mixed(i, operands, lambda a, b, c: a * b + c)
    if not is_float(i.type.removesuffix("x2")):
        raise Unsupported("fma of integers")
    return compute(i, operands, rounded_once(lambda a, b, c: a * b + c))


@instruction("contracted")
def contracted(i: Instruction, operands: Operands) -> Step:
    """What contraction makes of a multiplication and an addition or subtraction."""
    return compute(i, operands, rounded_once(CONTRACTED[i.parts[1]]))


CONTRACTED = {
    "add": lambda a, b, c: a * b + c,
    "sub": lambda a, b, c: a * b - c,
    "rsub": lambda a, b, c: c - a * b,
}


def rounded_once(function: Callable[..., Array]) -> Callable[..., Array]:
    """A function of numbers, computed in a wider type."""

    def run(*x: Array) -> Array:
        wide = np.longdouble if x[0].dtype == np.float64 else np.float64
        result = function(*[v.astype(wide) for v in x])
        return result.astype(np.float64 if wide is np.longdouble else np.float32)

    return run


@instruction("div")
def divide(i: Instruction, operands: Operands) -> Step:
    if not is_float(i.type):
        return compute(i, operands, divided)
    if i.type == "f32" and ("full" in i.parts or "approx" in i.parts):
        return approximate_division(i, operands)
    return compute(i, operands, np.divide)


@instruction("neg")
def negate(i: Instruction, operands: Operands) -> Step:
    return compute(i, operands, np.negative)


@instruction("abs")
def absolute(i: Instruction, operands: Operands) -> Step:
    return compute(i, operands, np.abs)


@instruction("copysign")
def copy_sign(i: Instruction, operands: Operands) -> Step:
    return compute(i, operands, lambda sign, magnitude: np.copysign(magnitude, sign))


@instruction("min")
def minimum(i: Instruction, operands: Operands) -> Step:
    return compute(i, operands, np.fmin if skips_nan(i) else np.minimum)


@instruction("max")
def maximum(i: Instruction, operands: Operands) -> Step:
    return compute(i, operands, np.fmax if skips_nan(i) else np.maximum)


def skips_nan(i: Instruction) -> bool:
    """Whether the other number is the result where one is NaN."""
    return is_float(i.type.removesuffix("x2")) and "NaN" not in i.parts
