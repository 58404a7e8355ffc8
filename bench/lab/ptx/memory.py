"""The host memory that stands for a GPU's: which ranges a launch may touch, how it reads and writes them."""

import ctypes
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .errors import GpuFault
from .values import UINT, Array

Where = Array | slice  # positions of accesses among all of an instruction
ALIGNED = 16  # bytes: views of a range begin at a multiple


@dataclass(frozen=True, slots=True)
class Access:
    """What an instruction does to memory: `count` elements of `element` bytes side by side, in each lane."""

    element: int
    count: int
    writes: bool
    text: str  # the instruction

    @property
    def width(self) -> int:
        """Bytes in each lane."""
        return self.element * self.count

    @property
    def name(self) -> str:
        """Store or load."""
        return "store" if self.writes else "load"

    def __str__(self):
        return f"{self.name} of {self.width} bytes"


class Memory:
    """Ranges [start, end) of host memory that a launch may touch, in the order of its tensors."""

    def __init__(self, ranges: Iterable[tuple[int, int]]):
        given = list(ranges)
        self.ranges = sorted(set(given))
        self.numbers = [given.index(r) for r in self.ranges]
        self.starts = [start for start, _ in self.ranges]
        self.bases = np.array(self.starts, np.uint64)
        self.ends = np.array([end for _, end in self.ranges], np.uint64)
        self.views: dict[tuple[int, int], tuple[int, Array]] = {}

    def view(self, i: int, element: int) -> tuple[int, Array]:
        """Where the view of a range begins, and its elements of that many bytes."""
        if (i, element) not in self.views:
            start, end = self.ranges[i]
            start -= start % ALIGNED
            count = (end - start) // element
            buffer = (ctypes.c_uint8 * (count * element)).from_address(start)
            self.views[i, element] = (start, np.frombuffer(buffer, UINT[element]))
        return self.views[i, element]

    def split(self, address: Array, access: Access) -> list[tuple[int, Where]]:
        """(range, positions) of addresses; a fault where one is outside every range."""
        low, high = int(address.min()), int(address.max()) + access.width
        i = bisect_right(self.starts, low) - 1
        if i >= 0 and high <= self.ranges[i][1]:
            return [(i, slice(None))]
        if not self.ranges:
            raise GpuFault(f"{access} at {low:#x} of a launch without tensors: {access.text}")
        which = np.searchsorted(self.bases, address, side="right") - 1
        outside = (which < 0) | (address + np.uint64(access.width) > self.ends[np.maximum(which, 0)])
        if outside.any():
            first = int(address[outside][0])
            raise GpuFault(
                f"{access}: {int(outside.sum())} accesses outside every tensor, first at {first:#x}, "
                f"{self.place(first)}: {access.text}"
            )
        return [(int(j), np.flatnonzero(which == j)) for j in np.unique(which)]

    def place(self, address: int) -> str:
        """An address in words: the byte of a tensor, or how far from the nearest."""
        if not self.ranges:
            return "of a launch without tensors"
        i = max(0, bisect_right(self.starts, address) - 1)
        start, end = self.ranges[i]
        if address < start:
            return f"{start - address} bytes before tensor {self.numbers[i]}"
        beyond = i + 1 < len(self.ranges) and self.starts[i + 1] - address < address - end
        if address >= end and beyond:
            return f"{self.starts[i + 1] - address} bytes before tensor {self.numbers[i + 1]}"
        return f"byte {address - start} of tensor {self.numbers[i]}, which has {end - start}"

    def read(self, address: Array, access: Access) -> list[Array]:
        """The elements at aligned addresses: an array for each of `access.count`."""
        out = [np.empty(address.shape, UINT[access.element]) for _ in range(access.count)]
        for view, at, where in self.elements(address, access):
            for k, elements in enumerate(out):
                elements[where] = view[at + k]
        return out

    def write(self, address: Array, access: Access, values: list[Array]) -> None:
        """Elements to aligned addresses; of two lanes with the same address the last counts."""
        for view, at, where in self.elements(address, access):
            for k, elements in enumerate(values):
                view[at + k] = elements[where].astype(UINT[access.element], copy=False)

    def elements(self, address: Array, access: Access) -> Iterator[tuple[Array, Array, Where]]:
        """(view, first element's position in it, positions among the addresses) for each range."""
        for i, where in self.split(address, access):
            start, view = self.view(i, access.element)
            yield (
                view,
                ((address[where] - np.uint64(start)) // np.uint64(access.element)).astype(np.int64),
                where,
            )
