"""The bytes that memory moves for one tensor of a launch, in one direction."""

import numpy as np

from .history import PROGRAM
from .lanes import Lanes
from .memory import ALIGNED, Where

CACHED = 1 << 20  # bytes of a tensor that stays in the second-level cache from its first access on


class Traffic:
    """Bytes loaded, or bytes stored, of a tensor that begins `first` bytes after a multiple of ALIGNED.

    A byte of a small tensor counts once. One of a large tensor counts at every instruction of every program,
    once however many threads of the program share it.
    """

    def __init__(self, first: int, size: int):
        self.counted = 0
        self.touched = np.zeros(-(-(first + size) // ALIGNED) * ALIGNED, bool) if size <= CACHED else None

    def note(self, place: Where, width: int, lanes: Lanes) -> None:
        """Notes accesses of this width at places, which count in units of the width."""
        if self.touched is not None:
            self.touched.reshape(-1, width)[place] = True
        elif isinstance(place, slice) or (place[1:] > place[:-1]).all():
            self.counted += width * lanes.count
        else:
            self.counted += width * np.unique((lanes.key & -PROGRAM) | place).size

    @property
    def bytes(self) -> int:
        """Bytes moved so far."""
        return self.counted if self.touched is None else int(np.count_nonzero(self.touched))
