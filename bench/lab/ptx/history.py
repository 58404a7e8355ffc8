"""Who last wrote and who last read each byte of a memory: what has no barrier between happens in any order.

Who is a key: program, number of barriers that it passed, warp. Bytes are kept in cells, as large as the
smallest access yet: aligned accesses touch whole cells. The place of an access counts in units of its width.
"""

from collections.abc import Callable

import numpy as np

from .errors import GpuFault
from .values import Array

LARGEST_CELL = 16
NOBODY = -1
WARPS = 1 << 6  # keys of one program between two barriers
PROGRAM = 1 << 32  # keys of one program
SEVERAL_WARPS = WARPS - 1  # in place of a warp
SEVERAL_PROGRAMS = (PROGRAM // 2 - 1) * PROGRAM
ON_ITS_WAY = (PROGRAM // 2 - 2) * PROGRAM  # a copy, which may arrive at any time

Place = Array | slice


def keys(program: Array, warp: Array) -> Array:
    """The keys of lanes at the beginning; after a barrier they are WARPS more."""
    return program.astype(np.int64) * PROGRAM + warp


class History:
    """Writers and readers of `size` bytes, the first `before` bytes behind a multiple of every width.

    Where `replicated`, a warp may write what several warps of its program read before: Triton loads a number
    that a program has once in every warp, and stores it from one, whose own load was in order.
    """

    def __init__(self, size: int, before: int = 0, replicated: bool = False):
        self.before, self.replicated = before, replicated
        self.cell = LARGEST_CELL
        cells = 2 * -(-(before + size) // (2 * self.cell))  # even, for accesses of two
        self.writer = np.full(cells, NOBODY, np.int64)
        self.reader = np.full(cells, NOBODY, np.int64)
        self.written = self.read = False
        self.disputed = 0  # stores by which lanes of a warp wrote different numbers to the same bytes

    def note(self, place: Place, width: int, key: Array, held: Callable[[], Array] | None = None) -> None:
        """Accesses by keys; a fault where another's may come before or after.

        Those that write give a function that says whether each place holds what was written to it just now.
        """
        writes = held is not None
        writer, reader = self.rows(width)
        if writer.ndim == 2:
            key = key[:, None]
        if self.written:
            self.check(writer, place, key, writes, "wrote")
        if writes:
            if self.read:
                self.check(reader, place, key, writes, "read")
            writer[place] = key
            self.written = True
            if not isinstance(place, slice):
                self.check_programs(writer, place, key)
                self.check_numbers(writer, place, key, held())
        else:
            self.note_read(reader, place, key)
            self.read = True

    def depart(self, place: Place, width: int, key: Array) -> None:
        """Copies set out that write somewhere between now and their arrival."""
        self.note(place, width, key, lambda: np.ones(key.shape, bool))
        self.rows(width)[0][place] = ON_ITS_WAY

    def arrive(self, place: Place, width: int, key: Array) -> None:
        """Copies have arrived, for those keys."""
        writer, _ = self.rows(width)
        writer[place] = key if writer.ndim == 1 else key[:, None]

    def unwritten(self, place: Place, width: int) -> bool:
        """Whether nobody wrote some of these places."""
        return not self.written or bool((self.rows(width)[0][place] == NOBODY).any())

    def rows(self, width: int) -> tuple[Array, Array]:
        """The cells of writers and readers, by accesses of a width: rows where an access has several."""
        if width < self.cell:
            times = self.cell // width
            self.writer, self.reader = np.repeat(self.writer, times), np.repeat(self.reader, times)
            self.cell = width
        if width == self.cell:
            return self.writer, self.reader
        several = (-1, width // self.cell)
        return self.writer.reshape(several), self.reader.reshape(several)

    def note_read(self, reader: Array, place: Place, key: Array) -> None:
        """Readers of places; with others that read there, several."""
        before = reader[place]
        after = joint(before, key) if self.read else key
        reader[place] = after
        if isinstance(place, slice):
            return
        kept = reader[place]  # of lanes that read the same, the last
        lost = kept != after
        if lost.any():
            at = lost if lost.ndim == 1 else lost.any(1)
            np.maximum.at(reader, place[at], joint(kept, after)[at])  # several are greater than one

    def check(self, cells: Array, place: Place, key: Array, writes: bool, did: str) -> None:
        """A fault where another program, or another warp since the last barrier, is in the cells."""
        before = cells[place]
        different = before ^ key
        if not (different > 0).any():
            return
        warps = (different > 0) & (different < WARPS)
        if self.replicated and did == "read":
            warps &= (before & SEVERAL_WARPS) != SEVERAL_WARPS
        clash = (different >= PROGRAM) | warps
        if clash.any():
            self.fault(cells, place, clash, before, key, writes, did)

    def check_programs(self, writer: Array, place: Array, key: Array) -> None:
        """A fault where programs write the same at once."""
        before = writer[place]
        clash = (before ^ key) >= PROGRAM
        if clash.any():
            self.fault(writer, place, clash, before, key, True, "wrote")

    def check_numbers(self, writer: Array, place: Array, key: Array, held: Array) -> None:
        """A fault where warps write different numbers to the same at once; lanes of a warp are counted."""
        if held.all():
            return
        if ((writer[place] != key).T & ~held).any():
            raise GpuFault("race: warps write different numbers by one instruction to the same bytes")
        self.disputed += 1

    def fault(
        self, cells: Array, place: Place, clash: Array, before: Array, key: Array, writes: bool, did: str
    ) -> None:
        """The fault of the first clash."""
        first = int(np.argmax(clash))
        byte = int(np.arange(cells.size).reshape(cells.shape)[place].flat[first]) * self.cell - self.before
        mine, other = int(np.broadcast_to(key, clash.shape).flat[first]), int(before.flat[first])
        if other == ON_ITS_WAY:
            what = "writes to" if writes else "reads"
            raise GpuFault(f"race: warp {mine % WARPS} {what} byte {byte}, where a copy is on its way")
        if other // PROGRAM != mine // PROGRAM:
            others = "others" if other == SEVERAL_PROGRAMS else other // PROGRAM
            raise GpuFault(
                f"programs {mine // PROGRAM} and {others} {'write' if writes else 'read'} the same byte, "
                f"{byte}"
            )
        others = "several warps" if other % WARPS == SEVERAL_WARPS else f"warp {other % WARPS}"
        what = "writes to" if writes else "reads"
        raise GpuFault(
            f"race: warp {mine % WARPS} {what} byte {byte}, which {others} {did} since the last barrier"
        )


def joint(before: Array, key: Array) -> Array:
    """The key of both readers. Who read before a program's last barrier is no matter to it."""
    different = before ^ key
    unlike = different > 0
    if not unlike.any():
        return np.broadcast_to(key, before.shape)
    others = np.where(different < WARPS, key | SEVERAL_WARPS, key)
    return np.where(unlike, np.where(different >= PROGRAM, SEVERAL_PROGRAMS, others), key)
