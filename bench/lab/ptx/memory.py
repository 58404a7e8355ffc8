"""The host memory that stands for a GPU's: ranges that a launch may touch, loads from and stores to them."""

import ctypes
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .errors import GpuFault
from .values import UINT, Array

Where = Array | slice  # positions among the accesses of an instruction
ALIGNED = 32  # bytes; views of a range begin at a multiple, because accesses do


@dataclass(frozen=True, slots=True)
class Access:
    """An instruction's access to memory: in each lane, `count` elements of `element` bytes in a row."""

    element: int
    count: int
    writes: bool
    instruction: object  # for messages

    @property
    def width(self) -> int:
        """Bytes of each lane."""
        return self.element * self.count

    @property
    def name(self) -> str:
        """ "store" or "load"."""
        return "store" if self.writes else "load"

    def __str__(self):
        return f"{self.name} of {self.width} bytes"


def place_of(address: Array, start: int, width: int) -> Where:
    """Addresses as numbers of units of this width after the start; a slice where they are consecutive."""
    count = address.size
    first, last = int(address[0]), int(address[-1])
    if last - first == width * (count - 1) and (address[1:] - address[:-1] == width).all():
        return slice((first - start) // width, (last - start) // width + 1)
    return ((address - address.dtype.type(start)) // address.dtype.type(width)).view(f"i{address.itemsize}")


def get(rows: Array, place: Where, count: int) -> list[Array]:
    """The elements at places, an array for each of the `count` of an access."""
    got = rows[place] if isinstance(place, slice) else rows.take(place, axis=0)
    if count == 1:
        return [got.copy() if isinstance(place, slice) else got]
    return list(got.T.copy())


def put(rows: Array, place: Where, values: list[Array]) -> None:
    """Stores elements at places; where accesses share one, the last counts."""
    rows[place] = values[0] if len(values) == 1 else np.stack(values, 1)


def is_held(rows: Array, place: Where, values: list[Array]) -> Array:
    """Whether places hold these elements."""
    columns = [rows] if len(values) == 1 else rows.T
    return np.logical_and.reduce([column[place] == elements for column, elements in zip(columns, values)])


def is_aligned(address: Array, width: int) -> bool:
    """Whether all addresses are multiples of a width."""
    return not int(np.bitwise_or.reduce(address)) & (width - 1)


class Memory:
    """The ranges [start, end) of host memory that a launch may touch, in the order of its tensors."""

    def __init__(self, ranges: Iterable[tuple[int, int]]):
        given = list(ranges)
        self.ranges = sorted(set(given))
        self.numbers = [given.index(r) for r in self.ranges]
        self.starts = [start for start, _ in self.ranges]
        self.bases = np.array(self.starts, np.uint64)
        self.ends = np.array([end for _, end in self.ranges], np.uint64)
        self.views: dict[tuple[int, int, int], Array] = {}

    def origin(self, i: int) -> int:
        """The start of the views of a range."""
        return self.starts[i] - self.starts[i] % ALIGNED

    def rows(self, i: int, access: Access) -> Array:
        """The elements of a range; in rows, one for each access, where an access has several."""
        element, count = access.element, access.count
        if (i, element, count) not in self.views:
            start = self.origin(i)
            rows = (self.ranges[i][1] - start) // access.width
            buffer = (ctypes.c_uint8 * (rows * access.width)).from_address(start)
            shape = rows if count == 1 else (rows, count)
            self.views[i, element, count] = np.frombuffer(buffer, UINT[element]).reshape(shape)
        return self.views[i, element, count]

    def split(self, address: Array, access: Access) -> list[tuple[int, Where]]:
        """Addresses as (range, positions); a fault where one is outside every range."""
        low, high = int(address.min()), int(address.max()) + access.width
        i = bisect_right(self.starts, low) - 1
        if i >= 0 and high <= self.ranges[i][1]:
            return [(i, slice(None))]
        which = np.searchsorted(self.bases, address, side="right") - 1
        outside = which < 0
        if self.ranges:
            outside |= address + np.uint64(access.width) > self.ends[np.maximum(which, 0)]
        if outside.any():
            first = int(address[outside][0])
            raise GpuFault(
                f"{access}: {int(outside.sum())} accesses outside every tensor, first at {first:#x}, "
                f"{self.describe(first)}: {access.instruction}"
            )
        return [(int(j), np.flatnonzero(which == j)) for j in np.unique(which)]

    def describe(self, address: int) -> str:
        """An address in words: the byte of a tensor, or how far it is from the nearest."""
        if not self.ranges:
            return "of a launch without tensors"
        after = bisect_right(self.starts, address)
        before = max(0, after - 1)
        start, end = self.ranges[before]
        if start <= address < end:
            return f"byte {address - start} of tensor {self.numbers[before]} of {end - start} bytes"
        if address >= end and (after == len(self.starts) or address - end <= self.starts[after] - address):
            return f"byte {address - start} of tensor {self.numbers[before]}, which has {end - start}"
        next_one = before if address < start else after
        return f"{self.starts[next_one] - address} bytes before tensor {self.numbers[next_one]}"
