"""Copies from global to shared memory that run beside the program (cp.async)."""

import numpy as np

from ..batch import Batch
from ..errors import Unsupported
from ..memory import Access
from ..operands import Operands
from ..parsing import Instruction
from ..values import UINT, Array
from .loads_and_stores import base_of
from .table import Step, instruction

LARGEST_ELEMENT = 8


@instruction(
    "cp",
    modifiers="async ca cg shared shared::cta global commit_group wait_group "
    "L2::64B L2::128B L2::256B L2::cache_hint",
)
def copy(i: Instruction, operands: Operands) -> Step:
    if i.opcode == "cp.async.commit_group":
        return lambda batch: batch.copies.commit()
    if i.opcode == "cp.async.wait_group":
        keep = int(i.operands[0], 0)
        return lambda batch: batch.copies.wait(keep)
    if i.parts[1] != "async" or i.parts[2] not in ("ca", "cg"):
        raise Unsupported("copy; executed are cp.async.ca, .cg, .commit_group and .wait_group")
    return issue(i, operands)


def issue(i: Instruction, operands: Operands) -> Step:
    """Makes a step that starts copies: it reads global memory now and writes shared memory at the wait."""
    hinted = "L2::cache_hint" in i.parts  # then the last operand is a policy, which changes no results
    to, to_offset = base_of(i.operands[0], operands, 4)
    of, of_offset = base_of(i.operands[1], operands, 8)
    size = int(i.operands[2], 0)
    given = operands.operand(i.operands[3] if len(i.operands) > 3 + hinted else str(size), 4)
    guard, negated = operands.guard(i), np.bool_(i.negated)
    element = min(LARGEST_ELEMENT, size)
    load, store = (Access(element, size // element, writes, i) for writes in (False, True))

    def step(batch: Batch) -> None:
        mask = batch.mask(guard, negated)
        mask = np.ones(batch.lanes, bool) if mask is None else mask
        if not mask.any():
            return
        bytes_read = batch.full(batch.registers[given])
        if ((bytes_read != 0) & (bytes_read != size) & mask).any():
            raise Unsupported(f"cp.async of a part; executed are those of all bytes and of none: {i}")
        reads = mask & (bytes_read == size)
        readers, writers = batch.lanes_of(reads), batch.lanes_of(mask)
        elements = batch.machine.globals.read(readers.of(batch.registers[of] + of_offset), load, readers)
        values = [spread(batch, readers.numbers, x) for x in elements]
        target = batch.full(batch.registers[to] + to_offset)
        batch.shared.depart(writers.of(target), store, writers)

        def arrive(arriving: Array) -> None:
            lanes = batch.lanes_of(arriving)
            batch.shared.arrive(lanes.of(target), store, [lanes.of(x) for x in values], lanes)

        batch.copies.issue(arrive, mask)

    return step


def spread(batch: Batch, selected: Array, elements: Array) -> Array:
    """The elements of the selected lanes, with zeros in the others."""
    values = np.zeros(batch.lanes, UINT[elements.itemsize])
    values[selected] = elements
    return values
