"""The bytes that memory moves for one tensor of a launch, in one direction."""

import numpy as np

from .history import PROGRAM
from .lanes import Lanes
from .memory import ALIGNED, Where
from .values import Array

CACHED = 1 << 20  # bytes of a tensor that stays in the second-level cache from its first access on
# An H100's cache has two halves, and each multiprocessor a share of what is in one.
MULTIPROCESSORS = 132
RECENT = (25 << 20) // MULTIPROCESSORS
LARGEST_CELL = 16  # bytes of an access at most
WAVE = 2.0**40  # more than the bytes that a program moves
NEVER = -WAVE


class Clock:
    """The time of each program, which is the bytes that were moved for it, and its wave.

    As many programs as there are multiprocessors are a wave, and run side by side, evenly.
    """

    def __init__(self, programs: int):
        self.time = np.arange(programs) // MULTIPROCESSORS * WAVE

    def advance(self, program: Array, bytes: Array) -> None:
        """Notes the bytes that were moved for each program named."""
        self.time += np.bincount(program, bytes, self.time.size)


class Traffic:
    """Bytes loaded, or bytes stored, of a tensor that begins `first` bytes after a multiple of ALIGNED.

    A byte of a small tensor counts once. One of a large tensor counts once at an instruction, however many
    threads share it, and not where the cache still has it: where the program, or one that runs beside it, had
    it at most RECENT bytes before.
    """

    def __init__(self, first: int, size: int, clock: Clock):
        self.counted, self.clock = 0, clock
        self.size = -(-(first + size) // ALIGNED) * ALIGNED
        self.touched = np.zeros(self.size, bool) if size <= CACHED else None
        self.cell = LARGEST_CELL
        self.last = None if size <= CACHED else np.full(self.size // self.cell, NEVER)  # time of last access

    def note(self, place: Where, width: int, lanes: Lanes) -> None:
        """Notes accesses of this width at places, which count in units of the width."""
        if self.touched is not None:
            self.touched.reshape(-1, width)[place] = True
            return
        if isinstance(place, slice):
            place = np.arange(self.size // width)[place]
        program, of_place, sharers = lanes.key // PROGRAM, slice(None), 1
        if not (place[1:] > place[:-1]).all():
            once = np.unique((lanes.key & -PROGRAM) | place, return_index=True)[1]
            place, of_place, counts = np.unique(place[once], return_inverse=True, return_counts=True)
            program, sharers = program[once], counts[of_place]
        self.divide_cells(width)
        cells = place[:, None] * (width // self.cell) + np.arange(width // self.cell)
        now = np.empty(place.size)
        now[of_place] = self.clock.time[program]
        moved = np.abs(now - self.last[cells[:, 0]]) > RECENT
        self.last[cells] = now[:, None]
        self.counted += width * int(np.count_nonzero(moved))
        self.clock.advance(program, width * moved[of_place] / sharers)

    def divide_cells(self, width: int) -> None:
        """Makes cells as small as an access."""
        if width < self.cell:
            self.last = self.last.repeat(self.cell // width)
            self.cell = width

    @property
    def bytes(self) -> int:
        """Bytes moved so far."""
        return self.counted if self.touched is None else int(np.count_nonzero(self.touched))
