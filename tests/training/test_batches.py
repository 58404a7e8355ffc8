"""Batches that `recalibrate_batch_norm` takes: mappings, lists, tuples, and any kind with a function."""

from collections import UserDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import normreg
from normreg.training.batches import moved

Pair = namedtuple("Pair", ["pixel_values", "labels"])


class Model(nn.Module):
    """A model with the arguments of transformers'."""

    def __init__(self):
        super().__init__()
        self.norm = normreg.BatchNorm2d(3)

    def forward(self, pixel_values, labels=None):
        return self.norm(pixel_values)


def images(device):
    return [torch.randn(5, 3, 2, 2, device=device) * 2 + i for i in range(3)]


def assert_average(model, xs):
    expected = torch.stack([x.mean((0, 2, 3)) for x in xs]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, expected)


BATCHES = {
    "tensors": lambda x: x,
    "lists": lambda x: [x, "target"],
    "tuples": lambda x: (x, "target"),
    "named tuples": lambda x: Pair(x, "target"),
    "mappings": lambda x: {"pixel_values": x, "labels": torch.zeros(5)},
    "mappings of one": lambda x: {"pixel_values": x},
    "a mapping of a library": lambda x: UserDict(pixel_values=x, labels=None),
    "mappings before targets": lambda x: ({"pixel_values": x}, "target"),
}


@pytest.mark.parametrize("made", BATCHES.values(), ids=BATCHES)
def test_batches(device, made):
    model, xs = Model().to(device), images(device)
    assert normreg.recalibrate_batch_norm(model, [made(x) for x in xs], device) == 3
    assert_average(model, xs)


def test_a_function_runs_a_batch(device):
    model, xs, called = Model().to(device), images(device), []

    def forward(given, batch):
        called.append((given is model, model.training, torch.is_grad_enabled()))
        return given(batch.images)

    model.eval()
    loader = [SimpleNamespace(images=x) for x in xs]
    assert normreg.recalibrate_batch_norm(model, loader, forward=forward) == 3
    assert_average(model, xs)
    assert called == 3 * [(True, True, False)]
    assert not model.training


class Moving:
    """What has a `to` of its own, as transformers' BatchEncoding does."""

    device = None

    def to(self, device):
        self.device = device
        return self


def test_tensors_are_moved_wherever_they_are():
    tensor, text, own = torch.zeros(2), "text", Moving()
    batch = {"a": [tensor, (tensor, text)], "b": Pair(tensor, {"c": tensor}), "d": 3, "own": own}
    there = moved(batch, "meta")
    found = [there["a"][0], there["a"][1][0], there["b"].pixel_values, there["b"].labels["c"]]
    assert {each.device.type for each in found} == {"meta"}
    assert (there["a"][1][1], there["d"], there["own"].device) == (text, 3, "meta")
    assert isinstance(there["b"], Pair)
    assert tensor.device.type == "cpu"


BAD = {
    "another name": (
        {"x": torch.ones(5, 3, 2, 2)},
        TypeError,
        r"test_batches\.Model .* mappings with the keys \['x'\] \(.*forward=",
    ),
    "no name": (
        {3: torch.ones(5, 3, 2, 2)},
        TypeError,
        r"mappings with the keys \[3\] \(.*forward=lambda model, batch: model\(batch\[3\]\)",
    ),
    "an empty mapping": (
        {},
        TypeError,
        r"missing a required argument: 'pixel_values'\): pass for example forward=",
    ),
    "an empty list": ([], ValueError, r"got an empty list: pass forward="),
}


@pytest.mark.parametrize(("batch", "kind", "message"), BAD.values(), ids=BAD)
def test_a_batch_that_the_model_does_not_take_changes_nothing(device, batch, kind, message):
    model = Model().to(device)
    model(images(device)[0])
    before = [b.clone() for b in model.buffers()]
    with pytest.raises(kind, match=message):
        normreg.recalibrate_batch_norm(model, [images(device)[0], batch])
    assert all(map(torch.equal, before, model.buffers()))
    assert model.norm.momentum == 0.1


def test_what_is_no_function(device):
    with pytest.raises(TypeError, match=r"forward to be a function \(model, batch\), got str: pass such as"):
        normreg.recalibrate_batch_norm(Model(), images(device), forward="pixel_values")
