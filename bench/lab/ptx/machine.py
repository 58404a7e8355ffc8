"""One launch of a program: its grid and arguments, the memory that it may touch, and its counts."""

from collections import Counter

import numpy as np

from .batch import Batch
from .control import Flow
from .errors import GpuFault, Unsupported
from .global_memory import GlobalMemory
from .memory import Memory
from .program import Program
from .values import Array

OF_SINGLE = 1e-10  # errors of float32 functions are larger than this
MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # the factors of splitmix64


class Machine:
    """Executes `program` for every program of a grid.

    arguments: the bytes of the kernel's parameters, in their order.
    shared_bytes: shared memory of each program.
    approximate: a seed. Results of approx and full instructions then move by up to the error that the PTX
        manual allows.
    races: whether to find accesses in undefined order.
    count: whether to count sectors, wavefronts and instructions.

    After `run`, `count` has events by name, and `by_class` the executed warp instructions by unit.
    """

    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        arguments: list[bytes],
        memory: Memory,
        shared_bytes: int,
        approximate: int | None = None,
        races: bool = True,
        count: bool = True,
    ):
        if len(arguments) < len(program.params):
            raise Unsupported(
                f"{program.kernel.name}: {len(program.params)} arguments expected, {len(arguments)} came: "
                f"give the bytes of {', '.join(program.params)}"
            )
        self.program, self.grid, self.arguments, self.memory = program, grid, arguments, memory
        self.shared_bytes = max(16, -(-shared_bytes // 16) * 16)
        self.approximate = approximate
        self.races, self.counting = races, count
        self.count: Counter[str] = Counter()
        self.by_class: Counter[str] = Counter()
        self.executed = [0] * len(program.blocks)  # number of warps that executed each block
        self.globals = GlobalMemory(memory, races, count, self.count, grid[0] * grid[1] * grid[2])

    def run(self, lanes_at_once: int = 8192) -> None:
        """Executes the launch, as many programs at a time as make up that many threads."""
        programs = self.grid[0] * self.grid[1] * self.grid[2]
        batch = max(1, lanes_at_once // self.program.kernel.threads)
        try:
            with np.errstate(all="ignore"):
                for first in range(0, programs, batch):
                    self.run_programs(first, min(programs, first + batch))
        except (GpuFault, Unsupported) as wrong:
            raise type(wrong)(f"{self.program.kernel.name}: {wrong}") from None
        if self.counting:
            for block, warps in zip(self.program.blocks, self.executed):
                for unit, times in block.units.items():
                    self.by_class[unit] += times * warps

    def run_programs(self, first: int, last: int) -> None:
        """Executes the programs from `first` up to `last` of the grid."""
        batch = Batch(self, first, last)
        Flow(batch).run()
        batch.shared.count_disputed()
        left = batch.copies.left()
        if left:
            self.count["cp.async not waited for"] += left

    def dram_bytes(self) -> int:
        """Bytes loaded and stored, as `traffic` counts them."""
        return self.globals.dram_bytes()

    def nudge(self, x: Array, relative: float) -> Array:
        """Moves float64 results by at most a relative error, where asked for; equal results by equal amounts.

        Exact results stay, because a GPU has them exact, too.
        """
        if self.approximate is None:
            return x
        moved = x * (1 + relative * scattered(x, self.approximate))
        kept = ~np.isfinite(moved)
        if relative > OF_SINGLE:
            kept |= (x.astype(np.float32) == x) | ~np.isfinite(moved.astype(np.float32))
        return np.where(kept, x, moved)


def scattered(x: Array, seed: int) -> Array:
    """Numbers from -1 to 1 that look random, as a function of float64 numbers and a seed."""
    bits = x.view(np.uint64) ^ np.uint64((seed * MIX[0] + MIX[1]) % 2**64)
    for factor in MIX:
        bits = (bits ^ (bits >> np.uint64(31))) * np.uint64(factor)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1
