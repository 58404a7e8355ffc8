"""A history of who last wrote and last read each byte of a memory, which finds accesses in undefined order.

A key says who: the program, the number of barriers it has passed, the warp. Bytes are grouped in cells as
large as the smallest access so far, so an aligned access touches whole cells. The place of an access counts
in units of its width.
"""

from collections.abc import Callable

import numpy as np

from .errors import GpuFault
from .values import Array

LARGEST_CELL = 16
LEAST_KEPT = 1 << 16
NOBODY = -1
WARPS = 1 << 6  # number of keys of a program between two barriers
PROGRAM = 1 << 32  # number of keys of a program
SEVERAL_WARPS = WARPS - 1  # stands for a warp in a key
SEVERAL_PROGRAMS = (PROGRAM // 2 - 1) * PROGRAM
ON_ITS_WAY = (PROGRAM // 2 - 2) * PROGRAM  # the key of a copy, which may arrive at any time

Place = Array | slice


def keys(program: Array, warp: Array) -> Array:
    """The keys of lanes before the first barrier; each barrier adds WARPS."""
    return program.astype(np.int64) * PROGRAM + warp


class History:
    """The last writers and readers of `size` bytes; `describe` names a byte for messages.

    replicated: a warp may write what several warps of its program have read. Triton loads a number that a
        program has once in every warp and stores it from one, whose own load came before.
    """

    def __init__(self, size: int, describe: Callable[[int], str], replicated: bool = False):
        self.describe, self.replicated = describe, replicated
        self.cell = LARGEST_CELL
        cells = 2 * -(-size // (2 * self.cell))  # an even number, for accesses of two cells
        self.writer = np.full(cells, NOBODY, np.int64)
        self.reader = np.full(cells, NOBODY, np.int64)
        self.written = self.read = False
        self.disputed = 0  # stores in which lanes of a warp wrote different numbers to the same bytes
        # reads that are not yet in `reader`, because many are followed by no write
        self.reads: list[tuple[Place, int, Array]] = []
        self.kept = 0  # number of lanes in them

    def note(
        self, place: Place, width: int, key: Array, held: Callable[[], Array] | None = None
    ) -> Array | None:
        """Notes accesses by keys and returns who wrote before; a fault where their order is undefined.

        held: given by writes, a function that says whether each place holds what was just written to it.
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
        """Notes in the cells the reads that are kept aside."""
        for place, width, key in self.reads:
            self.note_read(place, width, key)
        self.forget_reads()

    def forget_reads(self) -> None:
        """Drops the reads that are kept aside, because all lanes have met since."""
        self.reads.clear()
        self.kept = 0

    def depart(self, place: Place, width: int, key: Array) -> None:
        """Notes that copies have started, which write at some time before they arrive."""
        self.note(place, width, key, lambda: np.ones(key.shape, bool))
        self.rows(width)[0][place] = ON_ITS_WAY

    def arrive(self, place: Place, width: int, key: Array) -> None:
        """Notes that copies have arrived for these keys."""
        writer, _ = self.rows(width)
        writer[place] = key if writer.ndim == 1 else key[:, None]

    def rows(self, width: int) -> tuple[Array, Array]:
        """The cells of writers and readers as rows, one for each place of an access of this width."""
        if width < self.cell:
            times = self.cell // width
            self.writer, self.reader = np.repeat(self.writer, times), np.repeat(self.reader, times)
            self.cell = width
        if width == self.cell:
            return self.writer, self.reader
        several = (-1, width // self.cell)
        return self.writer.reshape(several), self.reader.reshape(several)

    def note_read(self, place: Place, width: int, key: Array) -> None:
        """Notes the readers of places; a place that others read, too, has several."""
        _, reader = self.rows(width)
        key = key if reader.ndim == 1 else key[:, None]
        after = joint(at(reader, place), key) if self.read else key
        reader[place] = after
        self.read = True
        if is_ascending(place):
            return
        kept = at(reader, place)  # the last of the lanes that read the same
        lost = kept != after
        if lost.any():
            rows = lost if lost.ndim == 1 else lost.any(1)
            np.maximum.at(reader, place[rows], joint(kept, after)[rows])  # several have greater keys than one

    def check(self, cells: Array, place: Place, key: Array, writes: bool, did: str) -> Array:
        """Returns who is in the cells; a fault for another program, or a warp since the last barrier."""
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
        """Raises a fault where programs write the same bytes by one instruction."""
        before = at(writer, place)
        clash = (before ^ key) >= PROGRAM
        if clash.any():
            self.fault(writer, place, clash, before, key, True, "wrote")

    def check_numbers(self, writer: Array, place: Array, key: Array, held: Array) -> None:
        """Raises a fault where warps write different numbers to the same bytes; counts it within a warp."""
        if held.all():
            return
        clash = ((at(writer, place) != key).T & ~held).T
        if clash.any():
            byte = self.byte(writer, place, int(np.argmax(clash)))
            raise GpuFault(f"race: warps write different numbers by one instruction to {byte}")
        self.disputed += 1

    def byte(self, cells: Array, place: Place, k: int) -> str:
        """The k-th of some places, as a byte in words."""
        cell = np.arange(cells.size).reshape(cells.shape)[place].flat[k]
        return self.describe(int(cell) * self.cell)

    def fault(
        self, cells: Array, place: Place, clash: Array, before: Array, key: Array, writes: bool, did: str
    ) -> None:
        """Raises the fault of the first clash."""
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
    """Whether places are in ascending order, so that none occurs twice."""
    return isinstance(place, slice) or bool((place[1:] > place[:-1]).all())


def joint(before: Array, key: Array) -> Array:
    """The key that stands for both readers. Reads before a program's last barrier do not matter to it."""
    different = before ^ key
    unlike = different > 0
    if not unlike.any():
        return np.broadcast_to(key, before.shape)
    others = np.where(different < WARPS, key | SEVERAL_WARPS, key)
    return np.where(unlike, np.where(different >= PROGRAM, SEVERAL_PROGRAMS, others), key)
