"""Global memory as a launch uses it: checked, counted, and shared between its programs."""

from collections import Counter

import numpy as np

from .counting import sectors
from .errors import GpuFault
from .memory import Access, Memory
from .ownership import Owners
from .values import Array

LARGEST_OWNED = 1 << 26  # bytes of a tensor; who touches larger ones is not kept
CACHED = 1 << 20  # bytes of a tensor that stays in cache: its re-reads cost no DRAM traffic


class GlobalMemory:
    """The memory of one launch."""

    def __init__(self, memory: Memory, races: bool, counting: bool, counts: Counter[str]):
        self.memory, self.races, self.counting, self.counts = memory, races, counting, counts
        self.moved: Counter[tuple[int, str]] = Counter()  # bytes by (range, load or store)
        self.owners: dict[int, Owners] = {}

    def read(self, address: Array, access: Access, program: Array, warp: Array) -> list[Array]:
        """The elements at the addresses of lanes, whose programs and warps these are."""
        if address.size == 0:
            return [np.empty(0, f"u{access.element}")] * access.count
        self.check_alignment(address, access)
        elements = self.memory.read(address, access)
        self.note(address, access, program, warp)
        return elements

    def write(self, address: Array, access: Access, values: list[Array], program: Array, warp: Array) -> None:
        """Elements to the addresses of lanes."""
        if address.size == 0:
            return
        self.check_alignment(address, access)
        self.memory.write(address, access, values)
        self.note(address, access, program, warp)

    def check_alignment(self, address: Array, access: Access) -> None:
        """A fault where an address is no multiple of what is accessed."""
        odd = address % np.uint64(access.width) != 0
        if odd.any():
            place = self.memory.place(int(address[odd][0]))
            raise GpuFault(f"misaligned {access}, at {place}: {access.text}")

    def note(self, address: Array, access: Access, program: Array, warp: Array) -> None:
        """Counts, and who touched what."""
        if self.counting:
            name = f"global {access.name}"
            self.counts[f"{name} bytes"] += access.width * address.size
            self.counts[f"{name} sectors"] += sectors(address, warp)
            self.counts[f"{name} requests"] += int(np.unique(warp).size)
        for i, where in self.memory.split(address, access):
            here = address[where]
            if self.counting:
                self.moved[i, access.name] += access.width * here.size
            start, end = self.memory.ranges[i]
            if self.races and end - start <= LARGEST_OWNED:
                if i not in self.owners:
                    self.owners[i] = Owners(start, end)
                try:
                    self.owners[i].note(here, access.width, program[where], access.writes)
                except GpuFault as fault:
                    raise GpuFault(f"{fault} of tensor {self.memory.numbers[i]}: {access.text}") from None

    def dram_bytes(self) -> int:
        """Loads and stores; those of small tensors once."""
        total = 0
        for (i, _), moved in self.moved.items():
            start, end = self.memory.ranges[i]
            total += min(moved, end - start) if end - start <= CACHED else moved
        return total
