"""The lanes of a batch that execute an access to memory."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .values import Array

WARP = 32


@dataclass(frozen=True)
class Lanes:
    """The numbers of the lanes, None for all; of all lanes, the warps, starts of shared memory and keys."""

    numbers: Array | None
    warps: Array
    homes: Array
    keys: Array

    def chosen(self, numbers: Array | None) -> "Lanes":
        """The lanes with these numbers."""
        return self if numbers is None else Lanes(numbers, self.warps, self.homes, self.keys)

    def at(self, where: Array | slice) -> "Lanes":
        """Some of these lanes, by their positions."""
        if isinstance(where, slice):
            return self
        return self.chosen(where if self.numbers is None else self.numbers[where])

    def of(self, x: Array) -> Array:
        """The values of a register in these lanes."""
        if x.shape[0] == 1:
            return x.repeat(self.count)
        return x if self.numbers is None else x.take(self.numbers)

    @cached_property
    def count(self) -> int:
        """The number of lanes."""
        return self.warps.size if self.numbers is None else self.numbers.size

    @cached_property
    def warp(self) -> Array:
        """The warp of each lane, counted within the batch."""
        return self.of(self.warps)

    @cached_property
    def home(self) -> Array:
        """The start of the shared memory of each lane's program."""
        return self.of(self.homes)

    @cached_property
    def key(self) -> Array:
        """The key of each lane in histories."""
        return self.of(self.keys)

    @cached_property
    def warp_count(self) -> int:
        """The number of warps that the lanes belong to."""
        if self.numbers is None:
            return self.count // WARP
        return int(np.count_nonzero(self.warp[1:] != self.warp[:-1])) + (self.count > 0)
