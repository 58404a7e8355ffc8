"""The lab finds the race in each kernel that lacks one of its barriers."""

import re

import pytest
import torch

import normreg
from bench import lab
from bench.lab.driver import Function

BARRIER = re.compile(r"^\s*(?:bar|barrier)\.sync\b.*\n", re.MULTILINE)
LAYERS = {
    "layer_norm": (lambda: normreg.LayerNorm(1000), (33, 1000)),
    "batch_norm": (lambda: normreg.BatchNorm2d(8), (9, 8, 21, 17)),
    "group_norm": (lambda: normreg.GroupNorm(2, 8), (3, 8, 17, 13)),
}
# one that Triton has put before anything is in shared memory; those of a branch for means that overflow
NOT_NEEDED = {"group_norm": 1, "batch_norm": 3}


@pytest.fixture
def launched(monkeypatch):
    """The compiled kernels that a test has launched, in order."""
    functions = {}
    run = Function.run

    def running(self, *arguments, **options):
        functions[self] = None
        return run(self, *arguments, **options)

    monkeypatch.setattr(Function, "run", running)
    return functions


def fault_of(run):
    """What the lab says of a race in shared memory, or nothing; another fault is an error of the test."""
    try:
        run()
    except lab.GpuFault as fault:
        if "shared" in str(fault):
            return str(fault)
        raise
    return ""


@pytest.mark.parametrize("operation", LAYERS)
def test_each_barrier_is_missed(launched, operation):
    make, shape = LAYERS[operation]
    layer, x = make(), torch.randn(shape, requires_grad=True)

    def run():
        y = layer(x)
        return torch.autograd.grad(y, [x, *layer.parameters()], torch.ones_like(y))

    run()
    barriers = missed = 0
    for function in [*launched]:
        whole = function.ptx
        for barrier in BARRIER.finditer(whole):
            barriers += 1
            function.ptx, function.program = whole[: barrier.start()] + whole[barrier.end() :], None
            missed += bool(fault_of(run))
        function.ptx, function.program = whole, None
    run()
    assert barriers >= 10
    assert missed >= barriers - NOT_NEEDED.get(operation, 0)
