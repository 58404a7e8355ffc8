"""Executes PTX, as Triton compiles it for an NVIDIA GPU, on the CPU: every thread of every program, in numpy.

An independent judge of compiled code where there is no GPU. Beyond computing, it raises GpuFault for what a
GPU faults on or what is a race: misaligned or stray accesses, shared memory out of bounds, reads of shared
memory that another warp wrote since the last barrier (or the reverse), barriers that not all threads reach,
shuffles with inactive lanes, programs of one launch that write what another reads or writes. It counts
instructions a warp, 32-byte sectors and shared-memory wavefronts.

    program = Program(compiled.asm["ptx"])
    machine = Machine(program, grid, arguments, Memory([(start, end), ...]), shared_bytes)
    machine.run()
    machine.count, machine.by_class, machine.dram_bytes()
"""

from .errors import GpuFault, Unsupported
from .machine import Machine
from .memory import Memory
from .program import Program

__all__ = ["GpuFault", "Machine", "Memory", "Program", "Unsupported"]
