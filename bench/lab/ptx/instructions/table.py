"""The table of instructions: by the first part of its name, what makes a step of one."""

from collections.abc import Callable
from functools import cache

import numpy as np

from ..batch import Batch
from ..errors import Unsupported
from ..operands import Operands
from ..parsing import Instruction
from ..values import SIZES, Array, reader, size_of, view_of, writer

Step = Callable[[Batch], None]
Maker = Callable[[Instruction, Operands], Step | None]
MAKERS: dict[str, tuple[Maker, frozenset[str]]] = {}  # with the modifiers that it knows


def instruction(*names: str, modifiers: str = "") -> Callable[[Maker], Maker]:
    """Register a function as what makes steps of the instructions of those names; None is nothing to do."""

    def register(maker: Maker) -> Maker:
        MAKERS.update(dict.fromkeys(names, (maker, frozenset(modifiers.split()))))
        return maker

    return register


def build(i: Instruction, operands: Operands) -> Step | None:
    """The step of an instruction."""
    return maker_of(i.opcode)(i, operands)


@cache
def maker_of(opcode: str) -> Maker:
    """What makes the steps of an opcode."""
    base, *parts = opcode.split(".")
    if base not in MAKERS:
        raise Unsupported(f"instruction {base!r}; executed are {', '.join(sorted(MAKERS))}")
    maker, known = MAKERS[base]
    for part in parts:
        if part not in known and part not in SIZES:
            raise Unsupported(
                f"modifier {part!r}; {base} is executed with {', '.join(sorted(known)) or 'none'}"
            )
    return maker


def assign(i: Instruction, operands: Operands, function: Callable[..., Array], sources: list[int]) -> Step:
    """A step that sets the first operand to a function of bits, in the lanes that run."""
    target = operands.register(i.operands[0])
    if i.predicate is None and len(sources) in UNGUARDED:
        return UNGUARDED[len(sources)](target, function, *sources)
    guard, negated = operands.guard(i), np.bool_(i.negated)

    def step(batch: Batch) -> None:
        registers = batch.registers
        batch.write(target, function(*[registers[s] for s in sources]), batch.mask(guard, negated))

    return step


def set_from_one(target: int, function: Callable[[Array], Array], a: int) -> Step:
    """A step without a predicate."""

    def step(batch: Batch) -> None:
        registers = batch.registers
        batch.set(target, function(registers[a]))

    return step


def set_from_two(target: int, function: Callable[[Array, Array], Array], a: int, b: int) -> Step:
    """A step without a predicate."""

    def step(batch: Batch) -> None:
        registers = batch.registers
        batch.set(target, function(registers[a], registers[b]))

    return step


def set_from_three(target: int, function: Callable[..., Array], a: int, b: int, c: int) -> Step:
    """A step without a predicate."""

    def step(batch: Batch) -> None:
        registers = batch.registers
        batch.set(target, function(registers[a], registers[b], registers[c]))

    return step


# most instructions are these, and most of their time would go where arguments are gathered
UNGUARDED = {1: set_from_one, 2: set_from_two, 3: set_from_three}


def compute(i: Instruction, operands: Operands, function: Callable[..., Array]) -> Step:
    """A step that sets the first operand to a function of numbers, all of the type that the name ends in."""
    ty = i.type
    sources = operands.sources(i.operands[1:], size_of(ty))
    if ty.endswith("x2"):
        return assign(i, operands, in_halves(function, ty.removesuffix("x2")), sources)
    size = operands.sizes[operands.register(i.operands[0])]
    return assign(i, operands, on_numbers(function, len(sources), ty, size, i.flushes), sources)


def on_numbers(
    function: Callable[..., Array], count: int, ty: str, size: int, ftz: bool
) -> Callable[..., Array]:
    """A function of bits that computes with `count` numbers of a type, and has a register of `size` bytes."""
    numbers, bits, view = reader(ty, ftz), writer(ty, size, ftz), view_of(ty)
    if view is None or ftz or count not in (1, 2, 3):
        return lambda *x: bits(function(*[numbers(v) for v in x]))
    if view.kind in "ub":
        return lambda *x: bits(function(*x))
    if count == 1:
        return lambda a: bits(function(a.view(view)))
    if count == 2:
        return lambda a, b: bits(function(a.view(view), b.view(view)))
    return lambda a, b, c: bits(function(a.view(view), b.view(view), c.view(view)))


def in_halves(function: Callable[..., Array], ty: str) -> Callable[..., Array]:
    """A function of bits that computes with both numbers of `ty` that they hold."""
    numbers, size = reader(ty), size_of(ty)
    narrow, wide = writer(ty, size), writer(f"u{16 * size}", 2 * size)
    low = reader(f"u{8 * size}")

    def both(*x: Array) -> Array:
        first = narrow(function(*[single(numbers(low(v))) for v in x]))
        second = narrow(function(*[single(numbers(low(v >> v.dtype.type(8 * size)))) for v in x]))
        first, second = wide(first), wide(second)
        return first | (second << second.dtype.type(8 * size))

    return both


def single(x: Array) -> Array:
    """16-bit numbers as float32."""
    return x.astype(np.float32, copy=False)
