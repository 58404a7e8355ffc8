"""CUDA graphs, streams and cuDNN's dropout, which exist on a GPU alone; test_devices.py has two GPUs."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import graphs
import pytest
import torch
from operations import every_layer

from normreg import dropout_mask, functional

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("case", graphs.CASES)
def test_captured_in_a_cuda_graph(case):
    done = subprocess.run(
        [sys.executable, graphs.__file__, case],
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@every_layer
def test_on_another_stream(device, row):
    """A kernel launched on another stream would read its input before it is written."""
    layer, source = row.make().to(device), torch.randn(5, *row.sample, device=device)

    def step(layer):
        torch.manual_seed(3)
        x = (source * 2).requires_grad_()
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    expected = step(copy.deepcopy(layer))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # cycles, some hundredths of a second
        results = step(layer)
    stream.synchronize()
    assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: functional.dropout(x, 0.5),
        lambda x: functional.dropout_add_layer_norm(x, x, x.shape[-1:], p=0.5),
        lambda x: dropout_mask(functional.dropout, x, 0.5),
    ],
    ids=["dropout", "dropout_add_layer_norm", "dropout_mask"],
)
def test_cudnn_keeps_its_state_of_dropout(device, call):
    """cuDNN's RNN makes its dropout state anew once the generator was set, which no dropout of ours does."""
    rnn = torch.nn.LSTM(8, 8, num_layers=2, dropout=0.5, device=device)
    x, generator = torch.randn(3, 2, 8, device=device), torch.cuda.default_generators[device.index]

    def draws():
        before = torch.get_rng_state(), torch.cuda.get_rng_state(device)
        rnn(x)
        return not all(map(torch.equal, before, (torch.get_rng_state(), torch.cuda.get_rng_state(device))))

    draws()
    assert not draws()
    call(x)
    assert not draws()
    generator.set_offset(generator.get_offset() + 4)
    assert draws()  # it would be seen
