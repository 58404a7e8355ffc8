"""Loads and stores of parameters, global and shared memory (ld, st)."""

import re
from operator import attrgetter

import numpy as np

from ..batch import Batch
from ..errors import Unsupported
from ..memory import Access
from ..operands import Operands, address, vector
from ..parsing import Instruction
from ..values import UINT, reader, size_of, writer
from .moves import DISCARDED
from .table import Step, instruction

# modifiers that say how long data stays in which cache do not change results
CACHING = "ca cg cs cv lu wb wt nc L1::evict_first L1::evict_last L1::evict_normal L1::no_allocate"
MODIFIERS = f"global shared shared::cta param const local v2 v4 v8 weak volatile L2::cache_hint {CACHING}"
SPACES = ("global", "shared", "param", "const", "local")


def space_of(i: Instruction) -> str:
    """The kind of memory that an instruction names."""
    named = [space for space in SPACES for part in i.parts if part.partition("::")[0] == space]
    if not named:
        raise Unsupported(f"access without a space; executed are those of {', '.join(SPACES[:3])} memory")
    return named[0]


def access_of(i: Instruction) -> Access:
    """The access to memory that an instruction makes."""
    count = next((int(part[1:]) for part in i.parts if re.fullmatch(r"v\d", part)), 1)
    listed = len(vector(i.operands[i.base == "st"]))
    if listed != count:
        raise Unsupported(f"access of {count} elements; {listed} registers are listed")
    return Access(size_of(i.type), count, i.base == "st", i)


def base_of(text: str, operands: Operands, size: int) -> tuple[int, np.unsignedinteger]:
    """The place of an address's base, and the offset."""
    base, offset = address(text)
    return operands.operand(base, size), UINT[size](offset & ((1 << 8 * size) - 1))


@instruction("ld", modifiers=MODIFIERS)
def load(i: Instruction, operands: Operands) -> Step:
    space = space_of(i)
    if space == "param":
        return load_parameter(i, operands)
    if space not in ("global", "shared"):
        raise Unsupported(f"load of {space} memory; executed are those of global, shared and param")
    access, guard, negated = access_of(i), operands.guard(i), np.bool_(i.negated)
    base, offset = base_of(i.operands[1], operands, 8 if space == "global" else 4)
    names = vector(i.operands[0])
    targets = [None if name == DISCARDED else operands.register(name) for name in names]
    bits = [None if t is None else extended(i.type, operands.sizes[t]) for t in targets]
    memory = attrgetter("machine.globals" if space == "global" else "shared")

    def step(batch: Batch) -> None:
        lanes = batch.lanes_where(guard, negated)
        values = memory(batch).read(lanes.of(batch.registers[base] + offset), access, lanes)
        for target, as_bits, value in zip(targets, bits, values):
            if target is not None:
                batch.put(target, as_bits(value), lanes.numbers)

    return step


def extended(ty: str, size: int):
    """Returns a function from loaded elements to a register of `size` bytes, which extends signs."""
    numbers, bits = reader(ty), writer(ty, size)
    if ty[0] != "s":
        return lambda x: x
    return lambda x: bits(numbers(x))


def load_parameter(i: Instruction, operands: Operands) -> Step:
    """Makes a step that loads a parameter of the kernel, or part of one."""
    name, offset = address(i.operands[1])
    if name not in operands.parameters:
        raise Unsupported(f"parameter {name!r}; the kernel has {', '.join(operands.parameters)}")
    k, size = operands.parameters[name], size_of(i.type)
    target, guard, negated = operands.register(i.operands[0]), operands.guard(i), np.bool_(i.negated)
    extend, held = extended(i.type, operands.sizes[target]), UINT[operands.sizes[target]]

    def step(batch: Batch) -> None:
        raw = np.frombuffer(batch.machine.arguments[k][offset : offset + size], UINT[size])
        batch.write(target, extend(raw).astype(held, copy=False), batch.mask(guard, negated))

    return step


@instruction("st", modifiers=MODIFIERS)
def store(i: Instruction, operands: Operands) -> Step:
    space = space_of(i)
    if space not in ("global", "shared"):
        raise Unsupported(f"store to {space} memory; executed are those to global and shared")
    access, guard, negated = access_of(i), operands.guard(i), np.bool_(i.negated)
    base, offset = base_of(i.operands[0], operands, 8 if space == "global" else 4)
    sources = operands.sources(vector(i.operands[1]), access.element)
    memory, held = attrgetter("machine.globals" if space == "global" else "shared"), UINT[access.element]

    def step(batch: Batch) -> None:
        lanes, registers = batch.lanes_where(guard, negated), batch.registers
        values = [lanes.of(registers[s]).astype(held, copy=False) for s in sources]
        memory(batch).write(lanes.of(registers[base] + offset), access, values, lanes)

    return step
