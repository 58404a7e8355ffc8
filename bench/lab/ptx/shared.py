"""Shared memory of the programs that run at the same time, and who touched it since the last barrier."""

from collections import Counter

import numpy as np

from .counting import wavefronts
from .errors import GpuFault
from .memory import Access
from .values import UINT, Array

NEVER = -1
SEVERAL = -2  # warps


class SharedMemory:
    """`size` bytes for each of `programs`; addresses count from the beginning of a program's own."""

    def __init__(self, programs: int, size: int, races: bool, counting: bool, counts: Counter[str]):
        self.size, self.races, self.counting, self.counts = size, races, counting, counts
        data = np.full(programs * size, 0xFF, np.uint8)
        self.views = {width: data.view(dtype) for width, dtype in UINT.items()}
        self.epoch = np.zeros(programs, np.int32)  # barriers that each program passed
        if races:
            self.wrote_at, self.writer, self.read_at, self.reader = np.full(
                (4, programs * size), NEVER, np.int32
            )

    def read(self, address: Array, access: Access, program: Array, warp: Array) -> list[Array]:
        """The elements at the addresses of lanes, whose programs and warps these are."""
        at = self.locate(address, access, program, warp) // access.element
        return [self.views[access.element][at + k] for k in range(access.count)]

    def write(self, address: Array, access: Access, values: list[Array], program: Array, warp: Array) -> None:
        """Elements to the addresses of lanes."""
        at = self.locate(address, access, program, warp) // access.element
        for k, elements in enumerate(values):
            self.views[access.element][at + k] = elements.astype(UINT[access.element], copy=False)

    def locate(self, address: Array, access: Access, program: Array, warp: Array) -> Array:
        """Positions in the memory of all programs; faults, races and counts are seen to."""
        if address.size == 0:
            return address.astype(np.int64)
        if int(address.max()) + access.width > self.size:
            raise GpuFault(
                f"{access}: shared memory out of bounds, byte {int(address.max())} where a program "
                f"has {self.size}: {access.text}"
            )
        address = address.astype(np.int64)
        if (address % access.width).any():
            first = int(address[address % access.width != 0][0])
            raise GpuFault(
                f"misaligned shared access of {access.width} bytes, at byte {first}: {access.text}"
            )
        if self.counting:
            self.counts["shared wavefronts"] += wavefronts(address, access.width, warp)
            self.counts["shared requests"] += int(np.unique(warp).size)
        at = address + program * self.size
        if self.races:
            self.note(at, access, program, warp)
        return at

    def note(self, at: Array, access: Access, program: Array, warp: Array) -> None:
        """Accesses of warps; a fault where another warp's has no barrier between."""
        at = (at[:, None] + np.arange(access.width)).ravel()
        warp, epoch = np.repeat(warp, access.width), np.repeat(self.epoch[program], access.width)
        self.check(at, access, (self.wrote_at[at] == epoch) & (self.writer[at] != warp), "wrote")
        if access.writes:
            self.check(at, access, (self.read_at[at] == epoch) & (self.reader[at] != warp), "read")
            self.wrote_at[at], self.writer[at] = epoch, warp
            return
        if (self.wrote_at[at] == NEVER).any():
            self.counts["reads of shared memory never written"] += 1
        others = (self.read_at[at] == epoch) & (self.reader[at] != warp)
        self.reader[at] = np.where(others, SEVERAL, warp)
        self.read_at[at] = epoch

    def check(self, at: Array, access: Access, clash: Array, did: str) -> None:
        """A fault where there is a clash."""
        if clash.any():
            byte = int(at[clash][0]) % self.size
            how = "write" if access.writes else "read"
            raise GpuFault(
                f"race in shared memory ({how}) at byte {byte}, which another warp {did} since the last "
                f"barrier: {access.text}"
            )
