"""Matrices of 8 x 8 16-bit numbers between registers and shared memory (ldmatrix, stmatrix).

Lane 8 k + r has the address of row r of matrix k, of up to four. A lane holds two neighbouring numbers of a
row; of a transposed matrix, two numbers of a column.
"""

import numpy as np

from ..batch import Batch
from ..errors import GpuFault, Unsupported
from ..memory import Access
from ..operands import Operands, vector
from ..parsing import Instruction
from ..values import Array
from .loads_and_stores import base_of
from .table import Step, instruction

ROW = 16  # bytes of a row


@instruction("ldmatrix", "stmatrix", modifiers="sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def matrix(i: Instruction, operands: Operands) -> Step:
    if i.predicate is not None or "m8n8" not in i.parts or i.type != "b16":
        raise Unsupported("matrix; executed are those of m8n8 and b16 without a predicate")
    loads, transposed = i.base == "ldmatrix", "trans" in i.parts
    listed, place = i.operands if loads else reversed(i.operands)
    base, offset = base_of(place, operands, 4)
    registers = [operands.register(name) for name in vector(listed)]
    access = Access(2 if transposed else 4, 1, not loads, i)

    def step(batch: Batch) -> None:
        batch.whole_warps(batch.active, i.base)
        rows = batch.full(batch.registers[base] + offset)
        for k, register in enumerate(registers):
            places = columns(batch, rows, k) if transposed else [row_parts(batch, rows, k)]
            if loads:
                load(batch, register, places, access)
            else:
                store(batch, register, places, access)

    return step


def row_parts(batch: Batch, rows: Array, k: int) -> Array:
    """The places of each lane's two numbers in matrix k."""
    return row_of(batch, rows, 8 * k + batch.lane // 4) + (4 * (batch.lane % 4)).astype(np.uint32)


def columns(batch: Batch, rows: Array, k: int) -> list[Array]:
    """The places of each lane's two numbers in matrix k transposed."""
    column = (2 * (batch.lane // 4)).astype(np.uint32)
    return [row_of(batch, rows, 8 * k + 2 * (batch.lane % 4) + half) + column for half in range(2)]


def row_of(batch: Batch, rows: Array, lane: Array) -> Array:
    """The address that another lane of the warp has."""
    row = rows[batch.all_lanes - batch.lane + lane]
    misaligned = row % ROW != 0
    if batch.active is not None:  # other programs have no address yet
        misaligned &= batch.active
    if misaligned.any():
        raise GpuFault(f"misaligned row of a matrix, at byte {int(row[misaligned][0])} of shared memory")
    return row


def load(batch: Batch, register: int, places: list[Array], access: Access) -> None:
    """Loads the numbers at places into the register, the second above the first."""
    lanes = batch.lanes_of(batch.active)
    got = [batch.shared.read(lanes.of(place), access, lanes)[0] for place in places]
    value = (
        got[0] if len(got) == 1 else got[0].astype(np.uint32) | (got[1].astype(np.uint32) << np.uint32(16))
    )
    batch.put(register, value, lanes.numbers)


def store(batch: Batch, register: int, places: list[Array], access: Access) -> None:
    """Stores the register's numbers at places."""
    lanes = batch.lanes_of(batch.active)
    value = lanes.of(batch.registers[register])
    values = (
        [value] if len(places) == 1 else [value.astype(np.uint16), (value >> np.uint32(16)).astype(np.uint16)]
    )
    for place, part in zip(places, values):
        batch.shared.write(lanes.of(place), access, [part], lanes)
