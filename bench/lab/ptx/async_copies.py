"""Copies from global to shared memory that arrive only where the program waits for them (cp.async)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import Unsupported
from .values import Array

if TYPE_CHECKING:
    from .batch import Batch

OPEN = -1


@dataclass(slots=True)
class Copy:
    """One instruction's copies: `arrive` brings those of some lanes, `group` has their group by program."""

    arrive: Callable[[Array], None]
    lanes: Array
    group: Array


class AsyncCopies:
    """The copies of a batch on their way, in the order of issue."""

    def __init__(self, batch: Batch):
        self.batch = batch
        self.copies: list[Copy] = []
        self.committed = np.zeros(batch.programs, np.int64)  # groups of each program

    def issue(self, arrive: Callable[[Array], None], lanes: Array) -> None:
        """Copies of a mask of lanes set out, in the group that is open."""
        self.copies.append(Copy(arrive, lanes, np.full(self.batch.programs, OPEN)))

    def commit(self) -> None:
        """What was issued since the last commit is a group."""
        active = self.active_programs()
        for copy in self.copies:
            copy.group[active & (copy.group == OPEN)] = self.committed[active & (copy.group == OPEN)]
        self.committed += active

    def wait(self, keep: int) -> None:
        """All groups but the last `keep` arrive: a thread sees its own, others need a barrier after."""
        active = self.active_programs()
        for copy in self.copies:
            due = active & (copy.group != OPEN) & (copy.group < self.committed - keep)
            arriving = copy.lanes & due[self.batch.program]
            if arriving.any():
                copy.arrive(arriving)
                copy.lanes = copy.lanes & ~arriving
        self.copies = [copy for copy in self.copies if copy.lanes.any()]

    def left(self) -> int:
        """Groups, program by program, that nothing waited for; copies in no group are one more."""
        groups, alone = set(), False
        for copy in self.copies:
            programs = np.unique(self.batch.program[copy.lanes])
            alone |= bool((copy.group[programs] == OPEN).any())
            groups |= {(p, copy.group[p]) for p in programs if copy.group[p] != OPEN}
        return len(groups) + alone

    def active_programs(self) -> Array:
        """Which programs execute the instruction, all threads of each."""
        if self.batch.active is None:
            return np.ones(self.batch.programs, bool)
        active = self.batch.active.reshape(self.batch.programs, -1)
        if (active.any(1) != active.all(1)).any():
            raise Unsupported("cp.async groups where threads of a program diverge")
        return active.all(1)
