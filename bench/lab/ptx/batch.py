"""Programs of a launch that run at the same time, a lane a thread: what instructions see of the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .async_copies import AsyncCopies
from .errors import GpuFault
from .memory import Access
from .shared import SharedMemory
from .values import Array

if TYPE_CHECKING:
    from .machine import Machine

WARP = 32


class Batch:
    """Lanes, their registers and their shared memory.

    A register is an array of one value, which all lanes have, or of a value for each. `active` are the lanes
    that execute the present instruction, None for all.
    """

    def __init__(self, machine: Machine, first: int, last: int):
        self.machine = machine
        self.programs, threads = last - first, machine.program.kernel.threads
        self.lanes = self.programs * threads
        self.all_lanes = np.arange(self.lanes)
        self.program = np.repeat(np.arange(self.programs), threads)  # of each lane, within the batch
        self.program_id = (self.program + first).astype(np.int32)  # within the grid
        self.warp = (self.all_lanes // WARP).astype(np.int32)
        thread = np.tile(np.arange(threads, dtype=np.uint32), self.programs)
        self.lane = (thread % WARP).astype(np.int64)  # within its warp
        self.registers = list(machine.program.operands.initial)
        self.set_specials(thread)
        self.active: Array | None = None
        self.shared = SharedMemory(
            self.programs, machine.shared_bytes, machine.races, machine.counting, machine.count
        )
        self.copies = AsyncCopies(self)

    def set_specials(self, thread: Array) -> None:
        """Registers that say which thread of which program a lane is."""
        places = self.machine.program.operands.specials
        x, y, _ = grid = self.machine.grid
        at = self.program_id
        values = {"%tid.x": thread, "%tid.y": 0, "%tid.z": 0, "%laneid": self.lane, "%warpid": thread // WARP}
        values |= {"%ntid.x": self.machine.program.kernel.threads, "%ntid.y": 1, "%ntid.z": 1}
        values |= {"%ctaid.x": at % x, "%ctaid.y": at // x % y, "%ctaid.z": at // (x * y)}
        values |= {f"%nctaid.{axis}": n for axis, n in zip("xyz", grid)}
        for name, place in places.items():
            self.registers[place] = np.atleast_1d(np.asarray(values[name], np.uint32))

    def mask(self, guard: int | None, negated: np.bool_) -> Array | None:
        """The lanes that execute an instruction with that predicate; None for all."""
        if guard is None:
            return self.active
        mask = self.full(self.registers[guard] ^ negated)
        if self.active is not None:
            mask = mask & self.active
        return None if mask.all() else mask

    def full(self, x: Array) -> Array:
        """A value for each lane."""
        return x if x.shape[0] == self.lanes else np.broadcast_to(x, (self.lanes,))

    def write(self, place: int, bits: Array, mask: Array | None) -> None:
        """Set a register in the lanes of a mask."""
        self.registers[place] = bits if mask is None else np.where(mask, bits, self.registers[place])

    def put(self, place: int, bits: Array, selected: Array | None) -> None:
        """Set a register to values of the selected lanes alone, given by their numbers."""
        old = self.registers[place]
        bits = bits.astype(old.dtype, copy=False)
        if selected is not None:
            new = np.array(self.full(old))
            new[selected] = bits
            bits = new
        self.registers[place] = bits

    def whole_warps(self, mask: Array | None, what: str) -> None:
        """A fault where an instruction that exchanges values between lanes misses lanes of a warp."""
        if mask is None:
            return
        active = np.count_nonzero(mask.reshape(-1, WARP), axis=1)
        parts = (active != 0) & (active != WARP)
        if parts.any():
            raise GpuFault(f"{what} with inactive lanes: {int(active[parts][0])} of 32 came")

    def load_shared(
        self, address: Array, access: Access, mask: Array | None
    ) -> tuple[Array | None, list[Array]]:
        """(lanes by number, None for all; their elements) from shared memory."""
        selected, address, warp = self.chosen(address, mask)
        program = self.of(self.program, selected)
        return selected, self.shared.read(address, access, program, warp)

    def store_shared(self, address: Array, access: Access, values: list[Array], mask: Array | None) -> None:
        """Elements of the lanes of a mask to shared memory."""
        selected, address, warp = self.chosen(address, mask)
        program = self.of(self.program, selected)
        self.shared.write(address, access, [self.of(v, selected) for v in values], program, warp)

    def load_global(
        self, address: Array, access: Access, mask: Array | None
    ) -> tuple[Array | None, list[Array]]:
        """(lanes by number, None for all; their elements) from global memory."""
        selected, address, warp = self.chosen(address, mask)
        program = self.of(self.program_id, selected)
        return selected, self.machine.globals.read(address, access, program, warp)

    def store_global(self, address: Array, access: Access, values: list[Array], mask: Array | None) -> None:
        """Elements of the lanes of a mask to global memory."""
        selected, address, warp = self.chosen(address, mask)
        program = self.of(self.program_id, selected)
        values = [self.of(v, selected) for v in values]
        self.machine.globals.write(address, access, values, program, warp)

    def chosen(self, address: Array, mask: Array | None) -> tuple[Array | None, Array, Array]:
        """The lanes of a mask by number, their addresses and their warps."""
        selected = None if mask is None else np.flatnonzero(mask)
        return selected, self.of(address, selected), self.of(self.warp, selected)

    def of(self, x: Array, selected: Array | None) -> Array:
        """The values of the selected lanes."""
        full = self.full(x)
        return full if selected is None else full[selected]
