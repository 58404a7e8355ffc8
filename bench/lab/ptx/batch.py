"""A batch: the programs of a launch that run at the same time, with a lane for each thread."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .async_copies import AsyncCopies
from .errors import GpuFault
from .history import WARPS, keys
from .lanes import WARP, Lanes
from .shared import SharedMemory
from .values import Array

if TYPE_CHECKING:
    from .machine import Machine


class Batch:
    """The lanes, their registers and their shared memory.

    A register is an array of one value, which all lanes share, or of one for each lane. `active` is the mask
    of lanes that execute the present instruction, None for all.
    """

    def __init__(self, machine: Machine, first: int, last: int):
        self.machine = machine
        self.programs, threads = last - first, machine.program.kernel.threads
        self.lanes = self.programs * threads
        self.all_lanes = np.arange(self.lanes)
        self.program = np.repeat(np.arange(self.programs), threads)  # by lane, counted within the batch
        self.program_id = self.program + first  # by lane, counted within the grid
        thread = np.tile(np.arange(threads, dtype=np.uint32), self.programs)
        self.lane = (thread % WARP).astype(np.int64)  # by lane, counted within its warp
        self.registers = list(machine.program.operands.initial)
        self.set_specials(thread)
        key = keys(self.program_id, thread.astype(np.int64) // WARP)
        homes = self.program * machine.shared_bytes
        self.everyone = Lanes(None, self.all_lanes // WARP, homes, key)
        self.known: dict[tuple[int, np.bool_], tuple[Array, Lanes]] = {}
        self.shuffles: dict[object, Array] = {}
        self.active: Array | None = None
        self.nobody = np.zeros(self.lanes, bool)
        self.shared = SharedMemory(
            self.programs, machine.shared_bytes, machine.races, machine.counting, machine.count
        )
        self.copies = AsyncCopies(self)

    def set_specials(self, thread: Array) -> None:
        """Sets the registers that tell a lane its thread and program."""
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
        """The mask of lanes that execute an instruction with this predicate; None for all."""
        if guard is None:
            return self.active
        mask = self.registers[guard] ^ negated
        if mask.shape[0] == 1:
            return self.active if mask[0] else self.nobody
        if self.active is not None:
            mask = mask & self.active
        return None if mask.all() else mask

    def full(self, x: Array) -> Array:
        """The values as an array with one for each lane."""
        return x if x.shape[0] == self.lanes else x.repeat(self.lanes)

    def set(self, place: int, bits: Array) -> None:
        """Sets a register in the active lanes."""
        if self.active is None:
            self.registers[place] = bits
        else:
            self.registers[place] = np.where(self.active, bits, self.registers[place])

    def write(self, place: int, bits: Array, mask: Array | None) -> None:
        """Sets a register in the lanes of a mask."""
        self.registers[place] = bits if mask is None else np.where(mask, bits, self.registers[place])

    def put(self, place: int, bits: Array, selected: Array | None) -> None:
        """Sets a register in the selected lanes, given by their numbers."""
        old = self.registers[place]
        bits = bits.astype(old.dtype, copy=False)
        if selected is not None:
            new = old.repeat(self.lanes) if old.shape[0] == 1 else old.copy()
            new[selected] = bits
            bits = new
        self.registers[place] = bits

    def whole_warps(self, mask: Array | None, what: str) -> None:
        """Raises a fault where an instruction that exchanges values between lanes misses lanes of a warp."""
        if mask is None:
            return
        active = np.count_nonzero(mask.reshape(-1, WARP), axis=1)
        parts = (active != 0) & (active != WARP)
        if parts.any():
            raise GpuFault(f"{what} with inactive lanes: {int(active[parts][0])} of 32 came")

    def lanes_of(self, mask: Array | None) -> Lanes:
        """The lanes of a mask."""
        return self.everyone if mask is None else self.everyone.chosen(np.flatnonzero(mask))

    def lanes_where(self, guard: int | None, negated: np.bool_) -> Lanes:
        """The lanes that execute an access with this predicate; kept, because many accesses share one."""
        if guard is None or self.active is not None:
            return self.lanes_of(self.mask(guard, negated))
        register = self.registers[guard]
        known = self.known.get((id(register), negated))
        if known is None:
            known = (register, self.lanes_of(self.mask(guard, negated)))
            self.known[id(register), negated] = known  # keeps the register, and so its id
        return known[1]

    def pass_barrier(self, programs: Array | None = None) -> None:
        """Notes that all lanes of some programs, or of all, have met."""
        passed = WARPS if programs is None else WARPS * programs[self.program]
        self.everyone = replace(self.everyone, keys=self.everyone.keys + passed)
        self.known.clear()
        if programs is None and self.shared.history is not None:
            self.shared.history.forget_reads()
