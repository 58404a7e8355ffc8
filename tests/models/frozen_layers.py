"""BatchNorm layers of every kind that can be frozen, and what is said of them."""

import copy

import pytest
import torch
from foreign_layers import TimmBatchNormAct2d
from torch import nn

import normreg

LAYERS = {
    "torch.nn": lambda: nn.BatchNorm2d(3),
    "normreg": lambda: normreg.BatchNorm2d(3),
    "cumulative": lambda: normreg.BatchNorm2d(3, momentum=None),
    "with an activation": lambda: normreg.BatchNormAct2d(3),
    "torch's synchronised": lambda: nn.SyncBatchNorm(3),
    "synchronised": lambda: normreg.SyncBatchNorm(3),
    "timm's": lambda: TimmBatchNormAct2d(3),
    "timm's, replaced": lambda: replaced(TimmBatchNormAct2d(3)),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def replaced(layer):
    model = nn.Sequential(layer)
    normreg.replace(model)
    return model[0]


def images(device):
    return torch.randn(4, 3, 5, 5, device=device)


def model_of(make, device):
    """A model with statistics, and the same in evaluation."""
    torch.manual_seed(1)
    model = nn.Sequential(make(), nn.Conv2d(3, 3, 1)).to(device)
    model[0].running_mean.uniform_(-1, 1)
    model[0].running_var.uniform_(0.5, 2)
    return model, copy.deepcopy(model).eval()


def assert_frozen(model, expected, device):
    """The layer computes as the expected model's in evaluation, whatever is said."""
    x = images(device)
    for training in (True, False, True):
        before = [b.clone() for b in model.buffers()]
        assert_same(model.train(training)(x), expected(x))
        assert all(map(torch.equal, before, model.buffers()))


def assert_same(y, expected):
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def assert_thawed(model, device):
    """The layer normalises by the batch again, and moves its statistics."""
    before = model[0].running_mean.clone()
    model.train()(images(device))
    assert model[0].training
    assert not torch.equal(before, model[0].running_mean)
