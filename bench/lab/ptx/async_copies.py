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
    """The copies of one instruction: `arrive` completes some lanes', `group` is each program's group."""

    arrive: Callable[[Array], None]
    lanes: Array
    group: Array


class AsyncCopies:
    """The copies of a batch that are under way, in the order of issue."""

    def __init__(self, batch: Batch):
        self.batch = batch
        self.copies: list[Copy] = []
        self.committed = np.zeros(batch.programs, np.int64)  # number of closed groups by program

    def issue(self, arrive: Callable[[Array], None], lanes: Array) -> None:
        """Starts the copies of a mask of lanes, in the open group."""
        self.copies.append(Copy(arrive, lanes, np.full(self.batch.programs, OPEN)))

    def commit(self) -> None:
        """Closes the open group, which holds the copies issued since the last commit."""
        active = self.active_programs()
        for copy in self.copies:
            copy.group[active & (copy.group == OPEN)] = self.committed[active & (copy.group == OPEN)]
        self.committed += active

    def wait(self, keep: int) -> None:
        """Completes all groups but the last `keep`, for the thread itself; others need a barrier, too."""
        active = self.active_programs()
        for copy in self.copies:
            due = active & (copy.group != OPEN) & (copy.group < self.committed - keep)
            arriving = copy.lanes & due[self.batch.program]
            if arriving.any():
                copy.arrive(arriving)
                copy.lanes = copy.lanes & ~arriving
        self.copies = [copy for copy in self.copies if copy.lanes.any()]

    def left(self) -> int:
        """The number of groups of all programs that were not waited for; copies in no group count as one."""
        groups, alone = set(), False
        for copy in self.copies:
            programs = np.unique(self.batch.program[copy.lanes])
            alone |= bool((copy.group[programs] == OPEN).any())
            groups |= {(p, copy.group[p]) for p in programs if copy.group[p] != OPEN}
        return len(groups) + alone

    def active_programs(self) -> Array:
        """The mask of programs that execute the instruction, each with all its threads."""
        if self.batch.active is None:
            return np.ones(self.batch.programs, bool)
        active = self.batch.active.reshape(self.batch.programs, -1)
        if (active.any(1) != active.all(1)).any():
            raise Unsupported("cp.async groups where threads of a program diverge")
        return active.all(1)
