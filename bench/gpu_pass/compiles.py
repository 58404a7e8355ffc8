"""Counts the kernels that Triton compiles for a GPU that is not there, in this process or in a test run.

As a plugin of pytest (PYTEST_PLUGINS=bench.gpu_pass.compiles) it makes tensors of the CPU take the path of a
GPU's for a whole session. Nothing is launched, so tests fail where they look at results; what they compile
before that is counted.
"""

import json
import os
import resource
from contextlib import ExitStack
from pathlib import Path

if "BENCH_COMPILES" in os.environ:
    os.environ["TRITON_INTERPRET"] = "0"  # tests/conftest.py has set it to 1 for processes that pytest starts

import triton

from bench.lab import stub_driver
from bench.lab.without_gpu import as_on_a_gpu

MOST_BYTES = 8 * 2**30  # of address space; imports take half of it
FOLDER = "BENCH_COMPILES"  # the variable that names where a session's counts are written


class Compiled:
    """The kernels compiled since `install`, and the CPU seconds of the process and its compilers."""

    def __init__(self):
        self.kernels, self.seconds = [], 0.0

    def install(self, path=None):
        """Starts to count; rewrites the file at `path` after each kernel, in case the process dies."""
        stub_driver.install(machine_code=True)
        self.path = path
        triton.knobs.compilation.listener = self.heard
        return self

    def heard(self, *, src, metadata, metadata_group, times, cache_hit):
        if not cache_hit:
            self.kernels.append(metadata["name"])
            self.seconds += times.total / 1e6
            self.write()

    def write(self):
        if self.path is not None:
            record = dict(kernels=self.kernels, compile_s=self.seconds, cpu_s=cpu_seconds())
            self.path.write_text(json.dumps(record))


def cpu_seconds():
    """CPU seconds of this process and of those that it started and waited for, such as ptxas."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def pytest_configure(config):
    resource.setrlimit(
        resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES)
    )  # tests may take sizes from uninitialised results and ask for all memory
    config.stash_compiled = Compiled().install(Path(os.environ[FOLDER]) / f"{os.getpid()}.json")
    config.stash_as_on_a_gpu = ExitStack()
    config.stash_as_on_a_gpu.enter_context(as_on_a_gpu())


def pytest_itemcollected(item):
    # pytest's report of a wrong result can take gigabytes
    item.repr_failure = lambda *_, **__: "nothing was launched"


def pytest_sessionfinish(session):
    config = session.config
    if not config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        config.stash_compiled.write()  # xdist's first process only hands out tests
