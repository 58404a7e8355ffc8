"""A stand-in for a GPU: the benchmark's cases made small, and clocks that make each call once."""

import contextlib
import itertools
from dataclasses import replace

from bench.operations import OPERATIONS
from bench.perf.speed import timing
from bench.perf.speed.measuring import Measurer

SMALL = {name: operation.small for name, operation in OPERATIONS.items()}


class Clocks:
    """Stands in for the parts of `timing` that need a GPU. As on one, a failed capture is never over."""

    DEVICE = "cpu"

    def __init__(self):
        self.seconds, self.capturing = itertools.count(1), False

    def sample(self, calls, stream):
        if self.capturing:
            raise RuntimeError("the generator is capturing")
        self.capturing = True
        for call in calls:
            call()
        self.capturing = False
        times = [float(next(self.seconds)) for _ in range(5)]
        return dict(device_us=times, end_to_end_us=[2 * t for t in times])

    def memory(self, forward, backward):
        return (backward and backward(forward())) and (1, 2)

    def sets(self, least_bytes):
        return 2

    def wait(self):
        pass

    def copy_bandwidth(self, size):
        return [1000.0, 1001.0, 1002.0]

    side_stream = staticmethod(contextlib.nullcontext)


CLOCKS = Clocks()


def install(set_attribute=setattr):
    for name in ("DEVICE", "sample", "memory", "sets", "wait", "copy_bandwidth", "side_stream"):
        set_attribute(timing, name, getattr(CLOCKS, name))
    return CLOCKS


def measurer():
    """Makes the Measurer that a worker with this stand-in serves."""
    install()
    return Measurer()


def small_operations():
    return {name: replace(operation, speed=(SMALL[name],)) for name, operation in OPERATIONS.items()}
