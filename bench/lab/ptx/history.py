"""Who last wrote and who last read each byte of a memory: what has no barrier between happens in any order.

Who is a key: program, number of barriers that it passed, warp. Bytes are kept in cells, as large as the
smallest access yet: aligned accesses touch whole cells. The place of an access counts in units of its width.
"""

from collections.abc import Callable

import numpy as np

from .errors import GpuFault
from .values import Array

LARGEST_CELL = 16
LEAST_KEPT = 1 << 16
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
    """Writers and readers of `size` bytes, from a multiple of every width on; `describe` names a byte.

    Where `replicated`, a warp may write what several warps of its program read before: Triton loads a number
    that a program has once in every warp, and stores it from one, whose own load was in order.
    """

    def __init__(self, size: int, describe: Callable[[int], str], replicated: bool = False):
        self.describe, self.replicated = describe, replicated
        self.cell = LARGEST_CELL
        cells = 2 * -(-size // (2 * self.cell))  # even, for accesses of two
        self.writer = np.full(cells, NOBODY, np.int64)
        self.reader = np.full(cells, NOBODY, np.int64)
        self.written = self.read = False
        self.disputed = 0  # stores by which lanes of a warp wrote different numbers to the same bytes
        self.reads: list[tuple[Place, int, Array]] = []  # not yet in `reader`: many are followed by no write
        self.kept = 0  # lanes of those

    def note(
        self, place: Place, width: int, key: Array, held: Callable[[], Array] | None = None
    ) -> Array | None:
        """Accesses by keys; a fault where another's may come before or after. Returns who wrote before.

        Those that write give a function that says whether each place holds what was written to it just now.
        """
        writer, reader = self.rows(width)
        keys = key if writer.ndim == 1 else key[:, None]
        writes = held is not None
        before = self.check(writer, place, keys, writes, "wrote") if self.written else None
        if not writes:
            self.reads.append((place, width, key))
            self.kept += key.size
            if self.kept > max(LEAST_KEPT, self.reader.size):
                self.settle()
            return before
        if self.reads:
            self.settle()
        if self.read:
            self.check(reader, place, keys, writes, "read")
        writer[place] = keys
        self.written = True
        if not is_ascending(place):
            self.check_programs(writer, place, keys)
            self.check_numbers(writer, place, keys, held())
        return before

    def settle(self) -> None:
        """Put the reads that are kept into the cells."""
        for place, width, key in self.reads:
            self.note_read(place, width, key)
        self.forget_reads()

    def forget_reads(self) -> None:
        """Reads that are kept no longer matter, because all have met since."""
        self.reads.clear()
        self.kept = 0

    def depart(self, place: Place, width: int, key: Array) -> None:
        """Copies set out that write somewhere between now and their arrival."""
        self.note(place, width, key, lambda: np.ones(key.shape, bool))
        self.rows(width)[0][place] = ON_ITS_WAY

    def arrive(self, place: Place, width: int, key: Array) -> None:
        """Copies have arrived, for those keys."""
        writer, _ = self.rows(width)
        writer[place] = key if writer.ndim == 1 else key[:, None]

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

    def note_read(self, place: Place, width: int, key: Array) -> None:
        """Readers of places; with others that read there, several."""
        _, reader = self.rows(width)
        key = key if reader.ndim == 1 else key[:, None]
        after = joint(at(reader, place), key) if self.read else key
        reader[place] = after
        self.read = True
        if is_ascending(place):
            return
        kept = at(reader, place)  # of lanes that read the same, the last
        lost = kept != after
        if lost.any():
            rows = lost if lost.ndim == 1 else lost.any(1)
            np.maximum.at(reader, place[rows], joint(kept, after)[rows])  # several are greater than one

    def check(self, cells: Array, place: Place, key: Array, writes: bool, did: str) -> Array:
        """Who is in the cells; a fault where another program is, or another warp since the last barrier."""
        before = at(cells, place)
        different = before ^ key
        positive = different > 0
        if not positive.any():
            return before
        warps = positive & (different < WARPS)
        if self.replicated and did == "read":
            warps &= (before & SEVERAL_WARPS) != SEVERAL_WARPS
        clash = (different >= PROGRAM) | warps
        if clash.any():
            self.fault(cells, place, clash, before, key, writes, did)
        return before

    def check_programs(self, writer: Array, place: Array, key: Array) -> None:
        """A fault where programs write the same at once."""
        before = at(writer, place)
        clash = (before ^ key) >= PROGRAM
        if clash.any():
            self.fault(writer, place, clash, before, key, True, "wrote")

    def check_numbers(self, writer: Array, place: Array, key: Array, held: Array) -> None:
        """A fault where warps write different numbers to the same at once; lanes of a warp are counted."""
        if held.all():
            return
        clash = ((at(writer, place) != key).T & ~held).T
        if clash.any():
            byte = self.byte(writer, place, int(np.argmax(clash)))
            raise GpuFault(f"race: warps write different numbers by one instruction to {byte}")
        self.disputed += 1

    def byte(self, cells: Array, place: Place, k: int) -> str:
        """The byte of the k-th cell of places."""
        cell = np.arange(cells.size).reshape(cells.shape)[place].flat[k]
        return self.describe(int(cell) * self.cell)

    def fault(
        self, cells: Array, place: Place, clash: Array, before: Array, key: Array, writes: bool, did: str
    ) -> None:
        """The fault of the first clash."""
        first = int(np.argmax(clash))
        byte = self.byte(cells, place, first)
        mine, other = int(np.broadcast_to(key, clash.shape).flat[first]), int(before.flat[first])
        warp = f"warp {mine % WARPS} {'writes to' if writes else 'reads'} {byte}"
        if other == ON_ITS_WAY:
            raise GpuFault(f"race: {warp}, where a copy is on its way")
        if other // PROGRAM != mine // PROGRAM:
            others = "others" if other == SEVERAL_PROGRAMS else other // PROGRAM
            how = "write" if writes else "read"
            raise GpuFault(f"programs {mine // PROGRAM} and {others} {how} the same byte, {byte}")
        others = "several warps" if other % WARPS == SEVERAL_WARPS else f"warp {other % WARPS}"
        raise GpuFault(f"race: {warp}, which {others} {did} since the last barrier")


def at(cells: Array, place: Place) -> Array:
    """The cells of places."""
    return cells[place] if isinstance(place, slice) else cells.take(place, axis=0)


def is_ascending(place: Place) -> bool:
    """Whether no place comes twice, as far as is seen at once."""
    return isinstance(place, slice) or bool((place[1:] > place[:-1]).all())


def joint(before: Array, key: Array) -> Array:
    """The key of both readers. Who read before a program's last barrier is no matter to it."""
    different = before ^ key
    unlike = different > 0
    if not unlike.any():
        return np.broadcast_to(key, before.shape)
    others = np.where(different < WARPS, key | SEVERAL_WARPS, key)
    return np.where(unlike, np.where(different >= PROGRAM, SEVERAL_PROGRAMS, others), key)
