"""Shared memory of the programs that run at the same time."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np

from .counting import wavefronts
from .errors import GpuFault
from .history import NOBODY, History
from .lanes import Lanes
from .memory import Access, Where, get, is_aligned, is_held, place_of, put
from .values import UINT, Array


class SharedMemory:
    """`size` bytes for each of `programs`; addresses count from the beginning of a program's own."""

    def __init__(self, programs: int, size: int, races: bool, counting: bool, counts: Counter[str]):
        self.size, self.counting, self.counts = size, counting, counts
        self.data = np.full(programs * size, 0xFF, np.uint8)
        self.history = History(programs * size, self.describe) if races else None

    def describe(self, byte: int) -> str:
        """A byte of a program's shared memory, in words."""
        return f"byte {byte % self.size} of shared memory"

    def read(self, address: Array, access: Access, lanes: Lanes) -> list[Array]:
        """The elements at the addresses of lanes."""
        if address.size == 0:
            return [np.empty(0, UINT[access.element])] * access.count
        place = self.place(address, access, lanes)
        if self.history is not None:
            writers = self.note(self.history.note, place, access, lanes)
            if writers is None or (writers == NOBODY).any():
                self.counts["reads of shared memory never written"] += 1
        return get(self.rows(access), place, access.count)

    def write(self, address: Array, access: Access, values: list[Array], lanes: Lanes) -> None:
        """Elements to the addresses of lanes."""
        if address.size == 0:
            return
        place = self.place(address, access, lanes)
        rows = self.rows(access)
        put(rows, place, values)
        if self.history is not None:
            self.note(self.history.note, place, access, lanes, partial(is_held, rows, place, values))

    def depart(self, address: Array, access: Access, lanes: Lanes) -> None:
        """Copies of lanes set out, which write to the addresses until they have arrived."""
        if address.size and self.history is not None:
            self.note(self.history.depart, self.place(address, access, lanes, False), access, lanes)

    def arrive(self, address: Array, access: Access, values: list[Array], lanes: Lanes) -> None:
        """Copies of lanes arrive."""
        place = self.place(address, access, lanes)
        if self.history is not None:
            self.history.arrive(place, access.width, lanes.key)
        put(self.rows(access), place, values)

    def count_disputed(self) -> None:
        """Stores by which lanes of a warp wrote different numbers to one place: which stays is undefined.

        Triton 3.9 lets all lanes store a sum that it computes by one fma in half of them.
        """
        if self.history is not None and self.history.disputed:
            self.counts["stores of different numbers to one place"] += self.history.disputed

    def rows(self, access: Access) -> Array:
        """All elements, by accesses: a row each where they have several."""
        elements = self.data.view(UINT[access.element])
        return elements if access.count == 1 else elements.reshape(-1, access.count)

    def place(self, address: Array, access: Access, lanes: Lanes, counting: bool = True) -> Where:
        """Checked and counted addresses as places in the memory of all programs."""
        if int(address.max()) + access.width > self.size:
            raise GpuFault(
                f"{access}: shared memory out of bounds, byte {int(address.max())} where a program "
                f"has {self.size}: {access.instruction}"
            )
        address = address.astype(np.int64)
        if not is_aligned(address, access.width):
            first = int(address[address % access.width != 0][0])
            raise GpuFault(
                f"misaligned shared access of {access.width} bytes, at byte {first}: {access.instruction}"
            )
        if self.counting and counting:
            self.counts["shared wavefronts"] += wavefronts(address, access.width, lanes.warp)
            self.counts["shared requests"] += lanes.warp_count
        return place_of(address + lanes.home, 0, access.width)

    def note(self, what: Callable[..., Array | None], place: Where, access: Access, lanes: Lanes, *held):
        """What the history is told and answers, with where it was in a fault."""
        try:
            return what(place, access.width, lanes.key, *held)
        except GpuFault as fault:
            raise GpuFault(f"{fault}: {access.instruction}") from None
