"""Which programs of a launch wrote and read each byte of a tensor: programs run in any order on a GPU.

Bytes are kept in cells, as large as the smallest access yet. Aligned accesses touch whole cells.
"""

import numpy as np

from .errors import GpuFault
from .values import Array

LARGEST_CELL = 16
NOBODY, SEVERAL = -1, -2


class Owners:
    """Writers and readers of the bytes from `start` to `end`."""

    def __init__(self, start: int, end: int):
        self.start = start - start % LARGEST_CELL
        self.skipped = start - self.start
        self.cell = LARGEST_CELL
        cells = -(-(end - self.start) // self.cell)
        self.writer = np.full(cells, NOBODY, np.int32)
        self.reader = np.full(cells, NOBODY, np.int32)
        self.written = self.read = False

    def note(self, address: Array, width: int, program: Array, writes: bool) -> None:
        """Aligned accesses of `width` bytes; a fault where another program's may come before or after."""
        at = self.cells(address, width)
        if width > self.cell:
            program = np.repeat(program, width // self.cell)
        if self.written:
            self.check(self.writer, at, program, writes)
        if writes and self.read:
            self.check(self.reader, at, program, writes)
        if writes:
            self.writer[at] = program
            self.written = True
        else:
            before = self.reader[at] if self.read else NOBODY
            self.reader[at] = np.where((before == NOBODY) | (before == program), program, SEVERAL)
            self.read = True

    def cells(self, address: Array, width: int) -> Array:
        """The cells of accesses, those of one access beside each other."""
        if width < self.cell:
            self.refine(width)
        at = ((address - np.uint64(self.start)) // np.uint64(self.cell)).astype(np.int64)
        return at if width == self.cell else (at[:, None] + np.arange(width // self.cell)).ravel()

    def refine(self, width: int) -> None:
        """Make the cells smaller."""
        times = self.cell // width
        self.writer, self.reader = np.repeat(self.writer, times), np.repeat(self.reader, times)
        self.cell = width

    def check(self, owner: Array, at: Array, program: Array, writes: bool) -> None:
        """A fault where an owner is another program."""
        before = owner[at]
        clash = (before != NOBODY) & (before != program)
        if clash.any():
            k = int(np.argmax(clash))
            other = "others" if before[k] == SEVERAL else before[k]
            raise GpuFault(
                f"programs {program[k]} and {other} {'write' if writes else 'read'} the same byte, "
                f"{int(at[k]) * self.cell - self.skipped}"
            )
