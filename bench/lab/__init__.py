"""What stands in for a GPU: compiled kernels, executed in host memory.

    from bench import lab

    lab.install()  # before normreg is imported

From then on kernels, normreg's and any other of Triton's, take tensors of the CPU. A launch raises `GpuFault`
for what a GPU faults on or what is a race there: misaligned and stray accesses, races in shared memory,
barriers that not all threads reach, programs of one launch that touch each other's bytes.
"""

import contextlib
import os
from collections.abc import Iterator

import triton

from .driver import Executed, HostDriver, activate, machine_code
from .ptx import GpuFault

__all__ = ["Executed", "GpuFault", "counted", "install", "machine_code"]

ARCH = "NORMREG_LAB_ARCH"  # the variable that names the GPU compiled for, where no argument does


def install(arch: int | None = None, multiprocessors: int = 4, approximate: int | None = None) -> HostDriver:
    """Makes tensors of the CPU those of a GPU that is executed in host memory, for this process.

    arch: the compute capability compiled for, 80, 90, 100 or 120; by default NORMREG_LAB_ARCH's, or 90.
    multiprocessors: of that GPU; few keep grids small.
    approximate: a seed; results of approximate instructions are then moved at random, by at most the errors
        that the PTX manual allows.

    Raises RuntimeError where normreg was imported before and has decided otherwise.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError(
            "expected TRITON_INTERPRET to be unset, got 1: interpreted kernels are not compiled"
        )
    host = HostDriver(int(os.environ.get(ARCH, 90)) if arch is None else arch, multiprocessors, approximate)
    activate(host)
    os.environ["NORMREG_CPU_KERNELS"] = "compiled"
    from normreg.kernels import cpu, launch

    if cpu.KERNELS != "compiled":
        raise RuntimeError(
            "expected lab.install() before normreg is imported, got it imported already, with kernels of the "
            f"CPU by {cpu.KERNELS or 'nothing'}: install first"
        )
    host.reachable = launch.reached_through_tables
    return host


@contextlib.contextmanager
def counted(host: HostDriver) -> Iterator[list[Executed]]:
    """The launches made meanwhile."""
    launches: list[Executed] = []
    before, host.heard = host.heard, launches.append
    try:
        yield launches
    finally:
        host.heard = before
