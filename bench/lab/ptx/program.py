"""A kernel ready to run: blocks of instructions, each a function of a batch, and the end of each block."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .batch import Batch
from .contraction import contract
from .control import Barrier, Branch, End, Exit, IndexedBranch, Next
from .counting import unit_of
from .errors import Unsupported
from .instructions import build
from .operands import Operands
from .parsing import Instruction, Kernel, parse
from .ways import ordered

Step = Callable[[Batch], None]
BARRIERS = ("bar.sync", "barrier.sync", "barrier.sync.aligned")
ENDS = ("bra", "brx", "ret", "exit", "bar", "barrier")


@dataclass(slots=True)
class Block:
    """Instructions that are executed one after another."""

    steps: list[Step] = field(default_factory=list)
    units: Counter[str] = field(default_factory=Counter)  # instructions by the unit that they occupy
    end: End = field(default_factory=Next)


class Program:
    """A kernel compiled from PTX. `fuse` contracts multiplications and additions, as ptxas does."""

    def __init__(self, ptx: str, fuse: bool = True):
        self.kernel: Kernel = parse(ptx)
        if fuse:
            contract(self.kernel)
        self.operands = Operands(self.kernel)
        self.params = self.operands.parameters
        starts = self.starts()
        number = {at: k for k, at in enumerate(starts)}
        self.targets = {label: number[at] for label, at in self.kernel.labels.items()}
        self.blocks = [self.block(a, b) for a, b in zip(starts, [*starts[1:], len(self.kernel.instructions)])]
        self.blocks[-1].end = Exit()
        self.kernel.instructions = []  # their steps are in the blocks
        order = ordered(self.after, [0], set(range(len(self.blocks))))
        self.order = np.array(order)
        self.rank = np.full(len(self.blocks), len(order))  # what unreachable blocks keep
        self.rank[self.order] = np.arange(len(order))

    def after(self, block: int) -> list[int]:
        """The blocks that may follow one."""
        return self.blocks[block].end.after(block)

    def starts(self) -> list[int]:
        """The starts of blocks; the last block is empty."""
        starts = {0, len(self.kernel.instructions), *self.kernel.labels.values()}
        starts |= {at + 1 for at, i in enumerate(self.kernel.instructions) if ends_block(i)}
        return sorted(starts)

    def block(self, start: int, end: int) -> Block:
        """Makes a block of the instructions from `start` up to `end`."""
        block = Block()
        for i in self.kernel.instructions[start:end]:
            block.units[unit_of(i.opcode)] += 1
            try:
                if ends_block(i):
                    block.end = self.end(i)
                else:
                    step = build(i, self.operands)
                    if step is not None:
                        block.steps.append(step)
            except Unsupported as wrong:
                raise Unsupported(f"{self.kernel.name}: {i}: {wrong}") from None
            except (LookupError, ValueError) as wrong:
                raise Unsupported(
                    f"{self.kernel.name}: {i}: operands other than expected: {wrong!r}"
                ) from wrong
        return block

    def end(self, i: Instruction) -> End:
        """The end of a block that an instruction makes."""
        guard = self.operands.guard(i)
        if i.base == "bra":
            return Branch(self.targets[i.operands[0]], guard, np.bool_(i.negated))
        if guard is not None:
            raise Unsupported(
                "predicated exit, barrier or indexed branch; executed are those without a predicate"
            )
        if i.base == "brx":
            index, table = i.operands
            targets = [self.targets[target] for target in self.kernel.tables[table]]
            return IndexedBranch(np.array(targets), self.operands.register(index))
        if i.base in ("ret", "exit"):
            return Exit()
        if i.opcode not in BARRIERS or i.operands != ["0"]:
            raise Unsupported(f"barrier; executed are {', '.join(BARRIERS)} 0, of all threads")
        return Barrier("aligned" in i.parts or i.base == "bar")


def ends_block(i: Instruction) -> bool:
    """Whether an instruction jumps or waits."""
    return i.base in ENDS and not i.opcode.startswith("bar.warp")
