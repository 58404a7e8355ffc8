"""Comparisons that set predicates (setp), and the choice by a predicate (selp)."""

from collections.abc import Callable
from functools import cache

import numpy as np

from ..batch import Batch
from ..errors import Unsupported
from ..operands import Operands
from ..parsing import Instruction
from ..values import Array, is_float, reader, size_of
from .table import Step, assign, instruction

SIGNED = dict(lt=np.less, le=np.less_equal, gt=np.greater, ge=np.greater_equal)
UNSIGNED = dict(lo=np.less, ls=np.less_equal, hi=np.greater, hs=np.greater_equal)
COMPARE = dict(eq=np.equal, ne=np.not_equal) | SIGNED | UNSIGNED
NAMES = " ".join([*COMPARE, *(f"{name}u" for name in COMPARE)])
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def unordered(a: Array, b: Array) -> Array:
    """Where one of two numbers is NaN."""
    return np.isnan(a) | np.isnan(b)


def comparison(name: str, floating: bool) -> Callable[[Array, Array], Array]:
    """The comparison of a name. With NaN it is false, except for names that end in `u`."""
    if floating:
        if name == "num":
            return lambda a, b: ~unordered(a, b)
        if name == "nan":
            return unordered
        if name == "ne":
            return lambda a, b: (a != b) & ~unordered(a, b)
        if name.endswith("u") and name[:-1] in COMPARE:
            compare = COMPARE[name[:-1]]
            return lambda a, b: compare(a, b) | unordered(a, b)
    if name not in COMPARE:
        raise Unsupported(
            f"comparison {name!r}; executed are {', '.join(COMPARE)} and of floats num, nan and those with u"
        )
    return COMPARE[name]


@cache
def comparison_of_bits(name: str, ty: str, ftz: bool) -> Callable[[Array, Array], Array]:
    """Returns a function of bits that compares the numbers they stand for."""
    numbers, compare = reader(ty, ftz), comparison(name, is_float(ty))
    return lambda a, b: compare(numbers(a), numbers(b))


@instruction("setp", modifiers="and or xor ftz num nan " + NAMES)
def set_predicate(i: Instruction, operands: Operands) -> Step:
    targets = [operands.register(name.strip()) for name in i.operands[0].split("|")]
    combine = COMBINE.get(i.parts[2])
    if i.type in ("f16x2", "bf16x2") and len(targets) == 2 and combine is None:
        return of_halves(i, operands, targets)
    run = comparison_of_bits(i.parts[1], i.type, i.flushes)
    sources = operands.sources(i.operands[1:3], size_of(i.type))
    if len(targets) == 2:
        if combine is not None:
            raise Unsupported("setp with two results and a third operand")
        return with_inverse(i, operands, targets, run, sources)
    if combine is None:
        return assign(i, operands, run, sources)
    inverted = np.bool_(i.operands[3][0] == "!")
    sources.append(operands.operand(i.operands[3].lstrip("!"), 0))
    return assign(i, operands, lambda a, b, c: combine(run(a, b), c ^ inverted), sources)


def with_inverse(
    i: Instruction,
    operands: Operands,
    targets: list[int],
    run: Callable[[Array, Array], Array],
    sources: list[int],
) -> Step:
    """Makes a step that sets one predicate to a comparison and another to its opposite."""
    guard, negated = operands.guard(i), np.bool_(i.negated)

    def step(batch: Batch) -> None:
        result, mask = run(*[batch.registers[s] for s in sources]), batch.mask(guard, negated)
        batch.write(targets[0], result, mask)
        batch.write(targets[1], ~result, mask)

    return step


def of_halves(i: Instruction, operands: Operands, targets: list[int]) -> Step:
    """Makes a step that compares the lower numbers of two registers, and the upper ones."""
    guard, negated = operands.guard(i), np.bool_(i.negated)
    numbers, compare = reader(i.type.removesuffix("x2")), comparison(i.parts[1], True)
    sources = operands.sources(i.operands[1:3], 4)

    def step(batch: Batch) -> None:
        a, b = (batch.registers[s] for s in sources)
        mask = batch.mask(guard, negated)
        for target, shift in zip(targets, (np.uint32(0), np.uint32(16))):
            halves = [numbers((x >> shift).astype(np.uint16)) for x in (a, b)]
            batch.write(target, compare(*halves), mask)

    return step


@instruction("selp")
def select(i: Instruction, operands: Operands) -> Step:
    sources = operands.sources(i.operands[1:3], size_of(i.type))
    sources.append(operands.operand(i.operands[3], 0))
    return assign(i, operands, either, sources)


def either(a: Array, b: Array, chosen: Array) -> Array:
    """Makes a step that chooses one of two registers."""
    return np.where(chosen, a, b)
