"""The table of instructions: the first part of an opcode and the function that makes its steps."""

from collections.abc import Callable
from functools import cache, lru_cache, partial

import numpy as np

from ..batch import Batch
from ..errors import Unsupported
from ..operands import Operands
from ..parsing import Instruction
from ..values import SIZES, Array, reader, size_of, view_of, writer

Step = Callable[[Batch], None]
Maker = Callable[[Instruction, Operands], Step | None]
MAKERS: dict[str, tuple[Maker, frozenset[str]]] = {}  # by name, with the known modifiers


def instruction(*names: str, modifiers: str = "") -> Callable[[Maker], Maker]:
    """Registers a function that makes the steps of instructions; it may return None for no step."""

    def register(maker: Maker) -> Maker:
        MAKERS.update(dict.fromkeys(names, (maker, frozenset(modifiers.split()))))
        return maker

    return register


def build(i: Instruction, operands: Operands) -> Step | None:
    """Makes the step of an instruction."""
    return maker_of(i.opcode)(i, operands)


@cache
def maker_of(opcode: str) -> Maker:
    """The function that makes the steps of an opcode."""
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
    """Makes a step that sets the first operand to a function of bits, in the active lanes."""
    target = operands.register(i.operands[0])
    if i.predicate is None and len(sources) in UNGUARDED:
        return partial(UNGUARDED[len(sources)], target, function, *sources)
    return partial(set_where, target, function, sources, operands.guard(i), np.bool_(i.negated))


def set_where(
    target: int,
    function: Callable[..., Array],
    sources: list[int],
    guard: int | None,
    negated: np.bool_,
    batch: Batch,
) -> None:
    """Sets a register to a function of others where a predicate says so."""
    bits = function(*[batch.registers[s] for s in sources])
    batch.write(target, bits, batch.mask(guard, negated))


def set_from_one(target: int, function: Callable[[Array], Array], a: int, batch: Batch) -> None:
    """Sets a register to a function of another."""
    batch.set(target, function(batch.registers[a]))


def set_from_two(target: int, function: Callable[..., Array], a: int, b: int, batch: Batch) -> None:
    """Sets a register to a function of two others."""
    registers = batch.registers
    batch.set(target, function(registers[a], registers[b]))


def set_from_three(target: int, function: Callable[..., Array], a: int, b: int, c: int, batch: Batch) -> None:
    """Sets a register to a function of three others."""
    registers = batch.registers
    batch.set(target, function(registers[a], registers[b], registers[c]))


# for most instructions, which would otherwise spend most of their time on gathering arguments
UNGUARDED = {1: set_from_one, 2: set_from_two, 3: set_from_three}


def compute(i: Instruction, operands: Operands, function: Callable[..., Array]) -> Step:
    """Makes a step that sets the first operand to a function of numbers of the type that ends the opcode."""
    sources = operands.sources(i.operands[1:], size_of(i.type))
    size = operands.sizes[operands.register(i.operands[0])]
    return assign(i, operands, on_numbers(function, len(sources), i.type, size, i.flushes), sources)


@lru_cache(4096)  # programs have few different ones
def on_numbers(
    function: Callable[..., Array], count: int, ty: str, size: int, ftz: bool
) -> Callable[..., Array]:
    """Returns a function of bits that computes with `count` numbers, for a register of `size` bytes."""
    if ty.endswith("x2"):
        return in_halves(function, ty.removesuffix("x2"))
    numbers, bits, view = reader(ty, ftz), writer(ty, size, ftz), view_of(ty)
    if view is None or ftz or count not in UNGUARDED:
        return lambda *x: bits(function(*[numbers(v) for v in x]))
    if view.kind in "ub":
        return lambda *x: bits(function(*x))
    if count == 1:
        return lambda a: bits(function(a.view(view)))
    if count == 2:
        return lambda a, b: bits(function(a.view(view), b.view(view)))
    return lambda a, b, c: bits(function(a.view(view), b.view(view), c.view(view)))


def in_halves(function: Callable[..., Array], ty: str) -> Callable[..., Array]:
    """Returns a function of bits that computes with both numbers of `ty` in them."""
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
