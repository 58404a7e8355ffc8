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
    """Memory of `size` bytes for each of `programs`, whose addresses begin at 0 in each."""

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
        """Stores elements at the addresses of lanes."""
        if address.size == 0:
            return
        place = self.place(address, access, lanes)
        rows = self.rows(access)
        put(rows, place, values)
        if self.history is not None:
            self.note(self.history.note, place, access, lanes, partial(is_held, rows, place, values))

    def depart(self, address: Array, access: Access, lanes: Lanes) -> None:
        """Notes that copies have started, which write to the addresses at some time before they arrive."""
        if address.size and self.history is not None:
            self.note(self.history.depart, self.place(address, access, lanes, False), access, lanes)

    def arrive(self, address: Array, access: Access, values: list[Array], lanes: Lanes) -> None:
        """Stores the elements of copies that arrive."""
        place = self.place(address, access, lanes)
        if self.history is not None:
            self.history.arrive(place, access.width, lanes.key)
        put(self.rows(access), place, values)

    def count_disputed(self) -> None:
        """Counts stores in which lanes of a warp wrote different numbers to one place, of which any may stay.

        Triton 3.9 lets all lanes store a sum that half of them compute with one fma.
        """
        if self.history is not None and self.history.disputed:
            self.counts["stores of different numbers to one place"] += self.history.disputed

    def rows(self, access: Access) -> Array:
        """All elements; in rows, one for each access, where an access has several."""
        elements = self.data.view(UINT[access.element])
        return elements if access.count == 1 else elements.reshape(-1, access.count)

    def place(self, address: Array, access: Access, lanes: Lanes, counting: bool = True) -> Where:
        """Checks and counts addresses; returns their places in the memory of all programs."""
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
        """Calls a method of the history; a fault names the instruction."""
        try:
            return what(place, access.width, lanes.key, *held)
        except GpuFault as fault:
            raise GpuFault(f"{fault}: {access.instruction}") from None
