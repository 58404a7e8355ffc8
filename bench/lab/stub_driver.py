"""A driver for Triton that compiles every kernel for a GPU and then launches nothing.

With it, tensors of the CPU take the whole path of a launch, with Triton's own specialisation and compilation,
on a machine without a GPU: compilations can be counted and Python's share of the time measured.
"""

from dataclasses import dataclass, field

from triton.runtime import driver

from bench.lab.driver import PROGRAM_THREADS, DriverWithoutGpu, compile_to_ptx


@dataclass
class Record:
    compiled: list = field(default_factory=list)  # names of kernels, once for each variant
    launched: list = field(default_factory=list)  # (name, {argument: type}) of each launch


class StubDriver(DriverWithoutGpu):
    """Records what is compiled and launched, as on an H100."""

    def __init__(self, record):
        super().__init__(arch=90, multiprocessors=132)
        self.record = record

    def load_binary(self, name, kernel, shared, device):
        self.record.compiled.append(name)
        module = function = registers = spills = 0
        return module, function, registers, spills, PROGRAM_THREADS

    def launcher(self, source, metadata):
        name, signature = source.fn.__name__, dict(source.signature)
        return lambda *arguments, **options: self.record.launched.append((name, signature))

    def get_benchmarker(self):
        raise NotImplementedError("nothing runs on a stub driver: there is nothing to time")


def install(machine_code=False):
    """Makes the stub the active driver of this process and returns what it records.

    machine_code: compiles as far as a GPU would need it; else up to PTX, which takes two thirds of the time.
    """
    record = Record()
    if not machine_code:
        compile_to_ptx()
    driver.set_active(StubDriver(record))
    return record
