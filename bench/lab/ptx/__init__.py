"""An emulator that executes PTX, as Triton compiles it for an NVIDIA GPU: every thread, in numpy.

It judges compiled code where there is no GPU. It raises GpuFault for what a GPU faults on and for races:
misaligned or stray accesses, shared memory out of bounds, reads of shared memory that another warp wrote
since the last barrier (or the reverse), barriers that not all threads reach, shuffles with inactive lanes,
programs of one launch that write what another reads or writes. It counts instructions per warp, 32-byte
sectors and shared-memory wavefronts.

    program = Program(compiled.asm["ptx"])
    machine = Machine(program, grid, arguments, Memory([(start, end), ...]), shared_bytes)
    machine.run()
    machine.count, machine.by_class, machine.dram_bytes()

parsing, contraction     from text to a list of instructions
operands, instructions/  from an instruction to a function that executes it
ways, control, program   from instructions to blocks, and the lanes' way through them
machine, batch, lanes    a launch, the programs that run at the same time, their threads
memory, global_memory, traffic, shared, async_copies, history
                         what programs touch, and who touched it before
counting, rounding, values, errors
                         what instructions need
"""

from .errors import GpuFault, Unsupported
from .machine import Machine
from .memory import Memory
from .program import Program

__all__ = ["GpuFault", "Machine", "Memory", "Program", "Unsupported"]
