"""Stand-ins for a GPU: compiled kernels, executed in host memory.

    from bench import lab

    lab.install()  # before normreg is imported

From then on kernels, normreg's and any other of Triton's, take tensors of the CPU. A launch raises `GpuFault`
where a GPU would fault and for races: misaligned and stray accesses, races in shared memory, barriers that
not all threads reach, programs of one launch that touch each other's bytes.

driver       a driver for Triton that executes compiled code in host memory, by ptx/, an emulator of PTX
stub_driver  a driver that compiles and launches nothing
without_gpu  the path of a GPU's tensors for those of the CPU, and the launches that it would make
interpreter  what makes Triton's interpreter faster
bounds       a guard against accesses of interpreted kernels outside their tensors
"""

import contextlib
import os
from collections.abc import Iterator

import triton

from .driver import Executed, HostDriver, activate, machine_code
from .ptx import GpuFault

__all__ = ["Executed", "GpuFault", "counted", "install", "machine_code"]

ARCH = "NORMREG_LAB_ARCH"  # variable with the default of `arch`


def install(arch: int | None = None, multiprocessors: int = 4, approximate: int | None = None) -> HostDriver:
    """Makes kernels take tensors of the CPU in this process, by executing code that is compiled for a GPU.

    arch: the compute capability compiled for, 80, 90, 100 or 120; by default NORMREG_LAB_ARCH's, or 90.
    multiprocessors: their number in that GPU; few keep grids small.
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
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # its other processes know no lab
    from normreg.kernels import cpu

    if cpu.KERNELS != "compiled":
        raise RuntimeError(
            "expected lab.install() before normreg is imported, got it imported already, with kernels of the "
            f"CPU by {cpu.KERNELS or 'nothing'}: install first"
        )
    return host


@contextlib.contextmanager
def counted(host: HostDriver) -> Iterator[list[Executed]]:
    """Collects the launches that are made meanwhile, with their counts."""
    launches: list[Executed] = []
    before, host.heard = host.heard, launches.append
    try:
        yield launches
    finally:
        host.heard = before
