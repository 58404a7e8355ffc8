"""A Triton backend and driver whose GPU is host memory: kernels are compiled to PTX, and the PTX is executed.

All between a layer and its machine code is as on a GPU: Triton's JIT, its specialisation on sizes and aligned
addresses, the launches that normreg keeps, tiles and grids. Nothing is compiled past PTX.
"""

import contextlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import torch
from triton.backends import Backend, backends
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver

from .ptx import Machine, Memory, Program

PROGRAM_THREADS = 1024  # at most in a program
SHARED_BYTES = 227 * 1024  # at most of a kernel on sm_90
MOST_PROGRAMS = (2**31 - 1, 65535, 65535)  # CUDA's limits along x, y and z
# the format of `struct` by which an argument of each of Triton's types lies in a kernel's parameters
INTEGERS = {1: "<?", 8: "<b", 16: "<h", 32: "<i", 64: "<q"}
PACKED = {f"i{bits}": packed for bits, packed in INTEGERS.items()}
PACKED |= {f"u{bits}": packed.upper() for bits, packed in INTEGERS.items()}
PACKED |= {"fp32": "<f", "f32": "<f", "fp64": "<d", "f64": "<d"}


class PtxBackend(CUDABackend):
    """Triton's own backend for NVIDIA GPUs, which stops at PTX."""

    def __init__(self, target: GPUTarget) -> None:
        super().__init__(target)
        self.binary_ext = "ptx"

    def add_stages(self, stages: dict, options, language=None) -> None:
        super().add_stages(stages, options, language)
        del stages["cubin"]

    def hash(self) -> str:
        return f"ptx-{super().hash()}"  # keeps PTX apart from cubins in Triton's cache


class PtxForInductor(PtxBackend):
    """The backend for the target "cpu", which Inductor names where tensors are in host memory."""

    COMPILED_FOR: GPUTarget | None = None

    @classmethod
    def supports_target(cls, target: GPUTarget) -> bool:
        return target.backend == "cpu" or target is cls.COMPILED_FOR

    def __init__(self, target: GPUTarget) -> None:
        PtxForInductor.COMPILED_FOR = driver.active.get_current_target()
        super().__init__(self.COMPILED_FOR)


@dataclass(frozen=True)
class Executed:
    """What a launch ran, and what was counted while it ran."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int  # per program
    count: dict[str, int]  # bytes, 32-byte sectors and requests of global memory, wavefronts of shared memory
    by_class: dict[str, int]  # warp instructions by class
    dram_bytes: int  # bytes moved, as `ptx.traffic` counts them


def range_of(tensor: torch.Tensor) -> tuple[int, int]:
    """The first address of a tensor's memory, and the first one after it."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def flat(kinds, values) -> Iterator[tuple[str, object]]:
    """Yields (type, value) for every argument of a compiled kernel, with tuples taken apart."""
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, tuple):
            yield from flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


class Function:
    """A compiled kernel, made executable at its first launch."""

    def __init__(self, ptx: str, shared_bytes: int) -> None:
        self.ptx, self.shared_bytes = ptx, shared_bytes
        self.program: Program | None = None

    def run(self, grid, arguments, memory, **options) -> Machine:
        if self.program is None:
            self.program = Program(self.ptx)
        machine = Machine(self.program, grid, arguments, memory, self.shared_bytes, **options)
        machine.run()
        return machine


class DriverWithoutGpu(DriverBase):
    """The part of a driver's interface that compilation and a launch use, for a GPU that is not there.

    Subclasses add load_binary, launcher, and get_benchmarker, which says why nothing can be timed.
    """

    def __init__(self, arch: int, multiprocessors: int) -> None:
        self.arch, self.multiprocessors = arch, multiprocessors
        self.utils = self
        self.launcher_cls = self.launcher

    def unload_module(self, module):
        """Does nothing, because nothing was loaded; newer Tritons call it for each kernel that they drop."""

    def get_device_properties(self, device):
        return {
            "max_shared_mem": SHARED_BYTES,
            "max_num_regs": 65536,
            "multiprocessor_count": self.multiprocessors,
            "warpSize": 32,
        }

    def get_current_target(self):
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self):
        return 0

    def set_current_device(self, device):
        """Does nothing, because there is one device."""

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty):
        return ty

    @classmethod
    def is_active(cls):
        return False  # it is active only once it is set


class HostDriver(DriverWithoutGpu):
    """A driver that executes launches on tensors in host memory.

    heard: called with each `Executed`; counting takes time, so with None nothing is counted.
    """

    executes_in_host_memory = True

    def __init__(self, arch: int, multiprocessors: int, approximate: int | None = None) -> None:
        super().__init__(arch, multiprocessors)
        self.approximate = approximate
        self.heard: Callable[[Executed], None] | None = None

    def load_binary(self, name, kernel, shared, device):
        module = registers = spills = 0
        return module, Function(kernel.decode(), shared), registers, spills, PROGRAM_THREADS

    def launcher(self, source, metadata):
        kinds = list(source.signature.values())

        def launch(x, y, z, stream, function, packed, launch_metadata, enter, leave, *values, **_):
            grid = (x, y, z)
            if not all(0 < n <= most for n, most in zip(grid, MOST_PROGRAMS)):
                raise ValueError(f"{source.name}: expected a grid from 1 to {MOST_PROGRAMS}, got {grid}")
            arguments = list(flat(kinds, values))
            tensors = [value for _, value in arguments if isinstance(value, torch.Tensor)]
            memory = Memory([range_of(tensor) for tensor in tensors])
            raw = [packed_argument(kind, value) for kind, value in arguments]
            scratch = [bytes(8)] * 4  # addresses of scratch memory, which these kernels do not use
            if enter:
                enter(launch_metadata)
            machine = function.run(
                grid, raw + scratch, memory, approximate=self.approximate, count=self.heard is not None
            )
            if leave:
                leave(launch_metadata)
            if self.heard is not None:
                threads = machine.program.kernel.threads
                counts = dict(machine.count), dict(machine.by_class), machine.dram_bytes()
                self.heard(Executed(source.name, grid, threads, *counts))

        return launch

    def get_benchmarker(self):
        raise NotImplementedError(
            "code executed in host memory takes no time of a GPU: there is none to measure"
        )


def packed_argument(kind: str, value) -> bytes:
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise ValueError(
                f"expected tensors of the CPU, got one of {value.device}: this driver executes there"
            )
        return struct.pack("<Q", value.data_ptr())
    if kind[0] == "*":
        return struct.pack("<Q", int(value or 0))
    return struct.pack(PACKED[kind], value)


TRITONS_OWN = backends["nvidia"]


def compile_to_ptx() -> None:
    """Makes Triton stop at PTX for NVIDIA GPUs, in this process."""
    backends["nvidia"] = Backend(compiler=PtxBackend, driver=HostDriver)


def activate(host: HostDriver) -> None:
    """Makes Triton compile and launch with this driver, in this process."""
    compile_to_ptx()
    driver.set_active(host)
    backends["cpu"] = Backend(compiler=PtxForInductor, driver=HostDriver)


@contextlib.contextmanager
def machine_code() -> Iterator[None]:
    """Compiles past PTX meanwhile; what is compiled then cannot be launched."""
    with mock.patch.dict(backends, nvidia=TRITONS_OWN):
        yield
