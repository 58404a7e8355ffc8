"""The table of instructions: by the first part of its name, what makes a step of one."""

from collections.abc import Callable

import numpy as np

from ..batch import Batch
from ..errors import Unsupported
from ..operands import Operands
from ..parsing import Instruction
from ..values import SIZES, Array, reader, size_of, writer

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
    if i.base not in MAKERS:
        raise Unsupported(f"instruction {i.base!r}; executed are {', '.join(sorted(MAKERS))}")
    maker, known = MAKERS[i.base]
    for part in i.parts[1:]:
        if part not in known and part not in SIZES:
            raise Unsupported(
                f"modifier {part!r}; {i.base} is executed with {', '.join(sorted(known)) or 'none'}"
            )
    return maker(i, operands)


def assign(i: Instruction, operands: Operands, function: Callable[..., Array], sources: list[int]) -> Step:
    """A step that sets the first operand to a function of bits, in the lanes that run."""
    target, guard, negated = operands.register(i.operands[0]), operands.guard(i), np.bool_(i.negated)

    def step(batch: Batch) -> None:
        registers = batch.registers
        batch.write(target, function(*[registers[s] for s in sources]), batch.mask(guard, negated))

    return step


def compute(i: Instruction, operands: Operands, function: Callable[..., Array]) -> Step:
    """A step that sets the first operand to a function of numbers, all of the type that the name ends in."""
    ty = i.type
    sources = operands.sources(i.operands[1:], size_of(ty))
    if ty.endswith("x2"):
        return assign(i, operands, in_halves(function, ty.removesuffix("x2")), sources)
    size = operands.sizes[operands.register(i.operands[0])]
    numbers, bits = reader(ty, i.flushes), writer(ty, size, i.flushes)
    return assign(i, operands, lambda *x: bits(function(*[numbers(v) for v in x])), sources)


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
