"""Sums, products, quotients and extremes of numbers of one type, and fused multiply-adds."""

from collections.abc import Callable
from functools import cache

import numpy as np

from ..errors import Unsupported
from ..operands import Operands
from ..parsing import Instruction
from ..rounding import fused_double, odd_single, odd_sum, single_sum
from ..values import Array, is_float, reader
from .integers import divided, multiplied_high, multiplied_wide
from .table import Step, assign, compute, instruction
from .transcendental import approximate_division


def is_mixed(i: Instruction) -> bool:
    """Whether an instruction, of sm_100, has 16-bit operands, a float32 last one and a float32 result."""
    return i.parts[-2] == "f32" and i.type in ("f16", "bf16")


def mixed(i: Instruction, operands: Operands, function: Callable[..., Array]) -> Step:
    """Makes the step of an instruction whose first operands are 16-bit."""
    narrow, wide = reader(i.type), reader("f32")
    *first, last = i.operands[1:]
    sources = [*operands.sources(first, 2), operands.operand(last, 4)]

    def run(*x: Array) -> Array:
        numbers = [narrow(v).astype(np.float64) for v in x[:-1]]
        return function(*numbers, wide(x[-1]).astype(np.float64)).view(np.uint32)

    return assign(i, operands, run, sources)


@instruction("add", modifiers="rn ftz")
def add(i: Instruction, operands: Operands) -> Step:
    return mixed(i, operands, single_sum) if is_mixed(i) else compute(i, operands, np.add)


@instruction("sub", modifiers="rn ftz")
def subtract(i: Instruction, operands: Operands) -> Step:
    if is_mixed(i):
        return mixed(i, operands, lambda a, b: single_sum(a, -b))
    return compute(i, operands, np.subtract)


@instruction("mul", modifiers="rn ftz lo hi wide")
def multiply(i: Instruction, operands: Operands) -> Step:
    if "wide" in i.parts:
        return multiplied_wide(i, operands)
    if "hi" in i.parts:
        return multiplied_high(i, operands)
    return compute(i, operands, np.multiply)


@instruction("mad", modifiers="lo wide")
def multiply_add(i: Instruction, operands: Operands) -> Step:
    if "wide" in i.parts:
        return multiplied_wide(i, operands)
    if "lo" not in i.parts:
        raise Unsupported("mad; executed are mad.lo and mad.wide")
    return compute(i, operands, product_and_sum)


def product_and_sum(a: Array, b: Array, c: Array) -> Array:
    """a * b + c"""
    return a * b + c


@instruction("fma", modifiers="rn ftz")
def fused(i: Instruction, operands: Operands) -> Step:
    if is_mixed(i):
        return mixed(i, operands, lambda a, b, c: single_sum(a * b, c))
    return compute(i, operands, fused_in(i.type))


@instruction("contracted", modifiers="add sub rsub")
def contracted(i: Instruction, operands: Operands) -> Step:
    """Makes the step of a multiplication contracted with an addition or subtraction."""
    return compute(i, operands, fused_in(i.type, i.parts[1]))


@cache
def fused_in(ty: str, how: str = "add") -> Callable[[Array, Array, Array], Array]:
    """Returns a * b + c of a type's numbers, rounded once; to odd for 16-bit types, which are rounded again.

    how: "sub" stands for a * b - c and "rsub" for c - a * b.
    """
    if how != "add":
        fused = fused_in(ty)
        return (lambda a, b, c: fused(a, b, -c)) if how == "sub" else (lambda a, b, c: fused(-a, b, c))
    if ty == "f64":
        return fused_double
    if not is_float(ty.removesuffix("x2")):
        raise Unsupported("fma of integers")
    add = single_sum if ty in ("f32", "f32x2") else odd_single_sum

    def fused(a: Array, b: Array, c: Array) -> Array:
        return add(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))

    return fused


def odd_single_sum(a: Array, b: Array) -> Array:
    """A sum of float64 numbers as float32, rounded to odd."""
    return odd_single(odd_sum(a, b))


@instruction("div", modifiers="rn full approx ftz")
def divide(i: Instruction, operands: Operands) -> Step:
    if not is_float(i.type):
        return compute(i, operands, divided)
    if i.type == "f32" and ("full" in i.parts or "approx" in i.parts):
        return approximate_division(i, operands)
    return compute(i, operands, np.divide)


@instruction("neg", modifiers="ftz")
def negate(i: Instruction, operands: Operands) -> Step:
    return compute(i, operands, np.negative)


@instruction("abs", modifiers="ftz")
def absolute(i: Instruction, operands: Operands) -> Step:
    return compute(i, operands, np.abs)


@instruction("copysign")
def copy_sign(i: Instruction, operands: Operands) -> Step:
    return compute(i, operands, with_sign)


def with_sign(sign: Array, magnitude: Array) -> Array:
    """Numbers with the signs of others."""
    return np.copysign(magnitude, sign)


@instruction("min", modifiers="NaN ftz")
def minimum(i: Instruction, operands: Operands) -> Step:
    return extreme(i, operands, np.minimum, np.fmin, np.bitwise_or)


@instruction("max", modifiers="NaN ftz")
def maximum(i: Instruction, operands: Operands) -> Step:
    return extreme(i, operands, np.maximum, np.fmax, np.bitwise_and)


def extreme(
    i: Instruction, operands: Operands, choose: np.ufunc, skip_nan: np.ufunc, zeros: np.ufunc
) -> Step:
    """Makes a step that chooses one of two numbers; the choice between -0 and +0 combines their bits."""
    if not is_float(i.type.removesuffix("x2")):
        return compute(i, operands, choose)
    return compute(i, operands, of_floats(choose if "NaN" in i.parts else skip_nan, zeros))


@cache
def of_floats(choose: np.ufunc, zeros: np.ufunc) -> Callable[[Array, Array], Array]:
    """Returns a choice of two floats, in which zeros are chosen by their bits."""

    def run(a: Array, b: Array) -> Array:
        bits = f"u{a.itemsize}"
        return np.where(a == b, zeros(a.view(bits), b.view(bits)).view(a.dtype), choose(a, b))

    return run
