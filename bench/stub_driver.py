"""A driver for Triton that compiles every kernel for a GPU and then launches nothing.

With it, tensors on the CPU take the whole way of a launch, Triton's own specialisation and compilation
included, on a machine without a GPU: how often kernels are compiled can be counted, and what Python costs on
the way can be timed.
"""

from dataclasses import dataclass, field

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from .lab.driver import compile_to_ptx

SHARED_BYTES = 227 * 1024  # of a multiprocessor of sm_90, a kernel at most


@dataclass
class Record:
    compiled: list = field(default_factory=list)  # names of kernels, once for each variant
    launched: list = field(default_factory=list)  # (name, {argument: type}) of each launch


class StubDriver(DriverBase):
    """The part of a driver's interface that a launch uses."""

    def __init__(self, record):
        self.record = record
        self.utils = self
        self.launcher_cls = self.launcher

    def load_binary(self, name, kernel, shared, device):
        self.record.compiled.append(name)
        module = function = registers = spills = 0
        return module, function, registers, spills, 1024  # the threads that a program may have

    def unload_module(self, module):
        """Newer Tritons call it for every kernel that they drop; nothing was loaded."""

    def launcher(self, source, metadata):
        name, signature = source.fn.__name__, dict(source.signature)
        return lambda *arguments, **options: self.record.launched.append((name, signature))

    def get_device_properties(self, device):
        return {
            "max_shared_mem": SHARED_BYTES,
            "max_num_regs": 65536,
            "multiprocessor_count": 132,
            "warpSize": 32,
        }

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_benchmarker(self):
        raise NotImplementedError("nothing runs on a stub driver: there is nothing to time")

    @classmethod
    def is_active(cls):
        return False  # only where it is installed


def install(machine_code=False):
    """Makes the stub the active driver of this process and returns what it records.

    machine_code: compiles as far as a GPU would need it; else up to PTX, which takes two thirds of the time.
    """
    record = Record()
    if not machine_code:
        compile_to_ptx()
    driver.set_active(StubDriver(record))
    return record
