"""Global memory as a launch uses it: checked, counted, and shared by all programs."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np

from .counting import sectors
from .errors import GpuFault
from .history import History
from .lanes import Lanes
from .memory import Access, Memory, Where, get, is_aligned, is_held, place_of, put
from .traffic import Clock, Traffic
from .values import UINT, Array

LARGEST_KEPT = 1 << 26  # bytes of a tensor whose history is kept


class GlobalMemory:
    """The global memory of one launch."""

    def __init__(self, memory: Memory, races: bool, counting: bool, counts: Counter[str], programs: int):
        self.memory, self.races, self.counting, self.counts = memory, races, counting, counts
        self.clock = Clock(programs)
        self.traffic: dict[tuple[int, str], Traffic] = {}  # by (range, load or store)
        self.histories: dict[int, History] = {}

    def read(self, address: Array, access: Access, lanes: Lanes) -> list[Array]:
        """The elements at the addresses of lanes."""
        if address.size == 0:
            return [np.empty(0, UINT[access.element])] * access.count
        pieces = self.pieces(address, access, lanes)
        for i, where in pieces:
            place = place_of(address[where], self.memory.origin(i), access.width)
            got = get(self.memory.rows(i, access), place, access.count)
            self.note(i, place, access, lanes.at(where))
            if len(pieces) == 1:
                return got
            if where is pieces[0][1]:
                elements = [np.empty(address.size, UINT[access.element]) for _ in got]
            for whole, part in zip(elements, got):
                whole[where] = part
        return elements

    def write(self, address: Array, access: Access, values: list[Array], lanes: Lanes) -> None:
        """Stores elements at the addresses of lanes."""
        if address.size == 0:
            return
        for i, where in self.pieces(address, access, lanes):
            place = place_of(address[where], self.memory.origin(i), access.width)
            rows, here = self.memory.rows(i, access), [x[where] for x in values]
            put(rows, place, here)
            self.note(i, place, access, lanes.at(where), partial(is_held, rows, place, here))

    def pieces(self, address: Array, access: Access, lanes: Lanes) -> list[tuple[int, Where]]:
        """Checks and counts addresses; returns them as (range, positions)."""
        if not is_aligned(address, access.width):
            first = int(address[address % np.uint64(access.width) != 0][0])
            raise GpuFault(f"misaligned {access}, at {self.memory.describe(first)}: {access.instruction}")
        if self.counting:
            name = f"global {access.name}"
            self.counts[f"{name} bytes"] += access.width * address.size
            self.counts[f"{name} sectors"] += sectors(address, lanes.warp)
            self.counts[f"{name} requests"] += lanes.warp_count
        return self.memory.split(address, access)

    def note(
        self, i: int, place: Where, access: Access, lanes: Lanes, held: Callable[[], Array] | None = None
    ) -> None:
        """Notes which lanes accessed which bytes of a range."""
        start, end = self.memory.ranges[i]
        origin = self.memory.origin(i)
        if self.counting:
            if (i, access.name) not in self.traffic:
                self.traffic[i, access.name] = Traffic(start - origin, end - start, self.clock)
            self.traffic[i, access.name].note(place, access.width, lanes)
        if not self.races or end - start > LARGEST_KEPT:
            return
        if i not in self.histories:
            self.histories[i] = History(end - origin, lambda byte: self.memory.describe(origin + byte), True)
        try:
            self.histories[i].note(place, access.width, lanes.key, held)
            if self.histories[i].disputed:
                raise GpuFault(
                    "race: lanes of a warp store different numbers to the same bytes of tensor "
                    f"{self.memory.numbers[i]}"
                )
        except GpuFault as fault:
            raise GpuFault(f"{fault}: {access.instruction}") from None

    def dram_bytes(self) -> int:
        """Bytes loaded and stored, as `traffic` counts them."""
        return sum(traffic.bytes for traffic in self.traffic.values())
