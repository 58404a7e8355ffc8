"""A GPU that is not there, for the benchmark: its cases made small, and clocks that make each call once."""

import contextlib
import itertools
from dataclasses import replace

import torch

from bench.operations import OPERATIONS, Case
from bench.perf import timing
from bench.perf.measuring import Measurer

SMALL = {
    "layer_norm": Case("layer_norm", (6, 40), torch.float32, origin="test"),
    "rms_norm": Case("rms_norm", (6, 40), torch.float32),
    "layer_norm_channels": Case("layer_norm_channels", (3, 6, 5, 4), torch.float32),
    "batch_norm": Case("batch_norm", (4, 6, 5, 3), torch.float32, channels_last=True),
    "batch_norm_act": Case("batch_norm_act", (4, 6, 5, 3), torch.float32, layer="batch_norm+add+relu"),
    "group_norm": Case("group_norm", (3, 64, 5, 3), torch.float32),
    "instance_norm": Case("instance_norm", (3, 6, 5, 7), torch.float32),
    "dropout": Case("dropout", (64, 128), torch.float32),
    "dropout_add": Case("dropout_add", (400, 3, 12), torch.float32, layer="scaled drop path+add"),
    "dropout_add_norm": Case(
        "dropout_add_norm", (40, 64), torch.float32, layer="prenorm dropout+add+LayerNorm"
    ),
    "bias_act_dropout": Case("bias_act_dropout", (64, 128), torch.float32, layer="bias+gelu+dropout"),
}


class Clocks:
    """Everything of `timing` that needs a GPU. As on one, a capture that failed is never over."""

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
    """What a worker serves that has this stand-in for a GPU."""
    install()
    return Measurer()


def small_operations():
    return {name: replace(operation, speed=(SMALL[name],)) for name, operation in OPERATIONS.items()}
