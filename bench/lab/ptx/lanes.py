"""The lanes of a batch that execute an access to memory."""

from dataclasses import dataclass

import numpy as np

from .values import Array

WARP = 32


@dataclass(frozen=True, slots=True)
class Lanes:
    """Their numbers (None for all), and of each its program, its warp and its key in histories."""

    numbers: Array | None
    program: Array
    warp: Array
    key: Array

    def chosen(self, mask: Array | None) -> "Lanes":
        """Of all lanes those of a mask."""
        if mask is None:
            return self
        numbers = np.flatnonzero(mask)
        return Lanes(numbers, self.program[numbers], self.warp[numbers], self.key[numbers])

    def at(self, where: Array | slice) -> "Lanes":
        """Of these lanes some, by their positions."""
        if isinstance(where, slice):
            return self
        numbers = where if self.numbers is None else self.numbers[where]
        return Lanes(numbers, self.program[where], self.warp[where], self.key[where])

    def of(self, x: Array) -> Array:
        """The values of a register that they have."""
        if x.shape[0] == 1:
            return x.repeat(self.warp.size)
        return x if self.numbers is None else x[self.numbers]

    @property
    def warps(self) -> int:
        """How many warps they are of."""
        if self.numbers is None:
            return self.warp.size // WARP
        return int(np.count_nonzero(self.warp[1:] != self.warp[:-1])) + (self.warp.size > 0)
