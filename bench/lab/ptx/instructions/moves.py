"""Moves of registers, whole, taken apart or put together; and instructions that need no step."""

import numpy as np

from ..batch import Batch
from ..errors import Unsupported
from ..operands import Operands, vector
from ..parsing import Instruction
from ..values import UINT, Array, size_of
from .table import Step, assign, instruction

DISCARDED = "_"


@instruction("mov")
def move(i: Instruction, operands: Operands) -> Step:
    target, source = i.operands
    if target[0] == "{":
        return unpack(i, operands)
    if source[0] == "{":
        return pack(i, operands)
    size = operands.sizes[operands.register(target)]
    return assign(i, operands, unchanged, [operands.operand(source, size)])


def unchanged(x: Array) -> Array:
    """The bits as they are."""
    return x


def unpack(i: Instruction, operands: Operands) -> Step:
    """Makes a step that takes a register apart into several, the lowest part first."""
    names, size = vector(i.operands[0]), size_of(i.type)
    targets = [None if name == DISCARDED else operands.register(name) for name in names]
    source, each = operands.operand(i.operands[1], size), size // len(names)
    guard, negated = operands.guard(i), np.bool_(i.negated)

    def step(batch: Batch) -> None:
        x, mask = batch.registers[source], batch.mask(guard, negated)
        for k, target in enumerate(targets):
            if target is not None:
                batch.write(target, (x >> x.dtype.type(8 * each * k)).astype(UINT[each]), mask)

    return step


def pack(i: Instruction, operands: Operands) -> Step:
    """Makes a step that puts several registers together, the lowest part first."""
    names, size = vector(i.operands[1]), size_of(i.type)
    each, whole = size // len(names), UINT[size]

    def run(*parts: Array) -> Array:
        result = parts[0].astype(whole)
        for k, part in enumerate(parts[1:], 1):
            result = result | (part.astype(whole) << whole(8 * each * k))
        return result

    return assign(i, operands, run, operands.sources(names, each))


@instruction("createpolicy", modifiers="fractional L2::evict_first L2::evict_last")
def create_policy(i: Instruction, operands: Operands) -> Step:
    """Makes a step that sets a policy of the cache, which changes no results, to 0."""
    return assign(i, operands, unchanged, [operands.constant(0, 8)])


ORDER = (
    "acq_rel sc release acquire cta cluster gpu sys gl proxy async async::shared::cta launch_dependents wait"
)


@instruction("fence", "membar", "griddepcontrol", "bar", modifiers=f"{ORDER} warp sync")
def nothing(i: Instruction, operands: Operands) -> None:
    """Makes no step, because lanes of a warp run together here and memory is in order."""
    if i.base == "bar" and i.opcode != "bar.warp.sync":
        raise Unsupported("barrier")
