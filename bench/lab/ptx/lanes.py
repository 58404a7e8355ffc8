"""The lanes of a batch that execute an access to memory."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .values import Array

WARP = 32


@dataclass(frozen=True)
class Lanes:
    """Their numbers, None for all; of all lanes the warps, where their shared memory begins, the keys."""

    numbers: Array | None
    warps: Array
    homes: Array
    keys: Array

    def chosen(self, numbers: Array | None) -> "Lanes":
        """Of all lanes those with some numbers."""
        return self if numbers is None else Lanes(numbers, self.warps, self.homes, self.keys)

    def at(self, where: Array | slice) -> "Lanes":
        """Of these lanes some, by their positions."""
        if isinstance(where, slice):
            return self
        return self.chosen(where if self.numbers is None else self.numbers[where])

    def of(self, x: Array) -> Array:
        """The values of a register that they have."""
        if x.shape[0] == 1:
            return x.repeat(self.count)
        return x if self.numbers is None else x.take(self.numbers)

    @cached_property
    def count(self) -> int:
        """How many they are."""
        return self.warps.size if self.numbers is None else self.numbers.size

    @cached_property
    def warp(self) -> Array:
        """The warp of each, within the batch."""
        return self.of(self.warps)

    @cached_property
    def home(self) -> Array:
        """Where the shared memory of each one's program begins."""
        return self.of(self.homes)

    @cached_property
    def key(self) -> Array:
        """The key of each in histories."""
        return self.of(self.keys)

    @cached_property
    def warp_count(self) -> int:
        """How many warps they are of."""
        if self.numbers is None:
            return self.count // WARP
        return int(np.count_nonzero(self.warp[1:] != self.warp[:-1])) + (self.count > 0)
