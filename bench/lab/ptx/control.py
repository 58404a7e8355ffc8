"""The path of a batch's lanes through a program: branches, lanes that diverge and meet, barriers, exits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .batch import Batch
from .errors import GpuFault
from .lanes import WARP
from .values import Array


@dataclass(frozen=True, slots=True)
class Next:
    """An end of a block at which the next block follows."""

    def leave(self, flow: Flow) -> None:
        flow.jump(flow.at + 1)

    def after(self, at: int) -> list[int]:
        """The blocks that may follow this one."""
        return [at + 1]


@dataclass(frozen=True, slots=True)
class Exit:
    """An end of a block at which the lanes end."""

    def after(self, at: int) -> list[int]:
        return []

    def leave(self, flow: Flow) -> None:
        flow.exit()


@dataclass(frozen=True, slots=True)
class Barrier:
    """An end of a block at which all lanes of a program meet; `aligned`: whole warps at this instruction."""

    aligned: bool

    def after(self, at: int) -> list[int]:
        return [at + 1]

    def leave(self, flow: Flow) -> None:
        if self.aligned:
            flow.batch.whole_warps(flow.batch.active, "a barrier")
        flow.wait()


@dataclass(frozen=True, slots=True)
class Branch:
    """An end of a block at which another block follows where a predicate says so."""

    target: int
    guard: int | None
    negated: np.bool_

    def after(self, at: int) -> list[int]:
        return [self.target] if self.guard is None else [self.target, at + 1]

    def leave(self, flow: Flow) -> None:
        if self.guard is None:
            return flow.jump(self.target)
        taken = flow.batch.registers[self.guard] ^ self.negated
        if taken.all():
            flow.jump(self.target)
        elif not taken.any():
            flow.jump(flow.at + 1)
        else:
            flow.part(np.where(flow.batch.full(taken), self.target, flow.at + 1))


@dataclass(frozen=True, slots=True)
class IndexedBranch:
    """An end of a block at which a register chooses the next block from a table."""

    targets: Array
    index: int

    def after(self, at: int) -> list[int]:
        return [int(target) for target in self.targets]

    def leave(self, flow: Flow) -> None:
        flow.part(self.targets[flow.batch.full(flow.batch.registers[self.index]).astype(np.int64)])


End = Next | Exit | Barrier | Branch | IndexedBranch


class Flow:
    """The position of each lane of a batch. While all lanes are in one place, `at` alone is kept."""

    def __init__(self, batch: Batch):
        self.batch = batch
        self.at = 0
        self.places: Array | None = None  # the block of each lane, once lanes have diverged
        self.alive = np.ones(batch.lanes, bool)
        self.waiting = np.zeros(batch.lanes, bool)  # the lanes at a barrier

    def run(self) -> None:
        """Executes blocks until every lane has ended."""
        batch, blocks = self.batch, self.batch.machine.program.blocks
        all_warps, executed = batch.lanes // WARP, batch.machine.executed
        while self.choose():
            block = blocks[self.at]
            for step in block.steps:
                step(batch)
            active = batch.active
            executed[self.at] += all_warps if active is None else int(active.reshape(-1, WARP).any(1).sum())
            block.end.leave(self)

    def choose(self) -> bool:
        """Makes the lanes furthest back active, so that they catch up; False where all lanes have ended.

        Furthest back along the ways through the program, because a loop's end may precede it in the text.
        """
        if self.places is None:
            self.batch.active = None
            return self.at >= 0
        ready = self.alive & ~self.waiting
        if not ready.any():
            return False
        program = self.batch.machine.program
        self.at = int(program.order[program.rank[self.places[ready]].min()])
        ready &= self.places == self.at
        self.batch.active = None if ready.all() else ready
        return True

    def jump(self, target: int) -> None:
        """Moves all active lanes to one block."""
        if self.places is None:
            self.at = target
        else:
            self.places[self.active()] = target
            self.meet()

    def part(self, targets: Array) -> None:
        """Moves each active lane to a block of its own."""
        if self.places is None:
            self.places = targets
        else:
            active = self.active()
            self.places[active] = targets[active]
        self.meet()

    def active(self) -> Array | slice:
        """The active lanes as an index."""
        return slice(None) if self.batch.active is None else self.batch.active

    def meet(self) -> None:
        """Keeps a single position again where all lanes are in one place."""
        if self.alive.all() and not self.waiting.any() and (self.places == self.places[0]).all():
            self.at, self.places = int(self.places[0]), None

    def exit(self) -> None:
        """Ends the active lanes."""
        if self.places is None:
            self.at = -1
        else:
            self.alive[self.active()] = False
            self.release()

    def wait(self) -> None:
        """Makes the active lanes wait for the others of their programs."""
        if self.places is None:
            self.batch.pass_barrier()
            self.at += 1
            return
        self.waiting[self.active()] = True
        self.places[self.active()] = self.at + 1
        self.release()
        self.meet()

    def release(self) -> None:
        """Lets the programs go on whose lanes all wait."""
        waiting, alive = (x.reshape(self.batch.programs, -1) for x in (self.waiting, self.alive))
        here = alive.any(1) & (waiting | ~alive).all(1)
        if (here & ~alive.all(1)).any():
            program = int(np.flatnonzero(here & ~alive.all(1))[0])
            gone = int((~alive[program]).sum())
            raise GpuFault(
                f"a barrier that threads which have exited do not reach: {gone} threads of program "
                f"{int(self.batch.program_id[program * alive.shape[1]])} have"
            )
        waiting[here] = False
        if here.any():
            self.batch.pass_barrier(here)
