"""Each launch, forward and backward, is made on the device of its tensors, whichever device is current."""

import contextlib

import pytest
import torch
from operations import every_layer

from normreg.kernels import launch


class OnAnotherGpu(launch.Launch):
    """A launch for CPU tensors that claims cuda:1 and notes which device is current."""

    __slots__ = ("seen",)

    def again(self, tensors, numbers):
        self.seen.append(torch.cuda.current_device())


@every_layer
def test_every_launch_enters_its_own_device(monkeypatch, row):
    """Two GPUs are made up: 0 is current, and the launches are for 1."""
    current, seen, real = [0], [], launch.launch

    @contextlib.contextmanager
    def device(wanted):
        before, current[0] = current[0], wanted.index
        yield
        current[0] = before

    def spy(call, *tensors, **options):
        assert {t.device for t in tensors if t is not None} == {call.device}
        there = OnAnotherGpu(
            call.kernel, call.grid, torch.device("cuda", 1), num_warps=call.num_warps, **call.constants
        )
        there.seen = seen
        with monkeypatch.context() as patch:
            patch.setattr(launch, "INTERPRET", False)
            patch.setattr(torch.cuda, "current_device", lambda: current[0])
            patch.setattr(torch.cuda, "device", device)
            real(there, *tensors, **options)
        return real(call, *tensors, **options)

    monkeypatch.setattr(launch, "launch", spy)
    x = torch.randn(5, *row.sample, device="cuda" if torch.cuda.is_available() else "cpu", requires_grad=True)
    y = row.make().to(x.device)(x)
    forward = len(seen)
    y.sum().backward()
    assert 0 < forward < len(seen)
    assert set(seen) == {1}
    assert current == [0]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_layer
def test_layers_on_a_device_that_is_not_current(row):
    layer, x = row.make(), torch.randn(5, *row.sample)
    results = []
    for index in (0, 1):
        there = row.make().to(f"cuda:{index}")
        there.load_state_dict(layer.state_dict())
        leaf = x.to(f"cuda:{index}").requires_grad_()
        torch.cuda.manual_seed_all(0)
        with torch.cuda.device(0):
            y = there(leaf)
            y.square().sum().backward()
        results.append([y.cpu(), leaf.grad.cpu()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
