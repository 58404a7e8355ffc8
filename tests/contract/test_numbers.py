"""Numbers that layers are given: bool, int, numpy's and tensors of one do what they do in torch's layers."""

import numpy
import pytest
import torch
from outcomes import assert_same_outcome, outcome

import normreg

NUMBERS = {
    "True": True,
    "False": False,
    "1": 1,
    "float64": numpy.float64(0.25),
    "float32": numpy.float32(0.25),
    "int64": numpy.int64(1),
    "tensor": torch.tensor(0.25),
    "float64 tensor": torch.tensor(0.25, dtype=torch.float64),
    "str": "0.1",
}
# layer: (arguments, shape of an input, names of its numbers)
NORMS = {
    "BatchNorm1d": ((4,), (5, 4), ("eps", "momentum")),
    "BatchNorm2d": ((4,), (5, 4, 3, 3), ("eps", "momentum")),
    "InstanceNorm1d": ((4,), (5, 4, 6), ("eps",)),
    "GroupNorm": ((2, 4), (5, 4, 3), ("eps",)),
    "LayerNorm": ((4,), (5, 4), ("eps",)),
    "RMSNorm": ((4,), (5, 4), ("eps",)),
}
DROPOUTS = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")
CASES = [(kind, name) for kind, (_, _, names) in NORMS.items() for name in names]


def step(make, x):
    """Results, gradients and buffers of a layer that is made and called."""
    layer = make().to(x.device)
    x = x.clone().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *layer.buffers()]


def assert_same(ours, theirs):
    if isinstance(theirs, Exception) or isinstance(ours, Exception):
        assert_same_outcome(ours, theirs)
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_norms(device, kind, name, number):
    arguments, shape, _ = NORMS[kind]
    x, ends = torch.randn(shape, device=device), []
    for library in (normreg, torch.nn):
        make = lambda library=library: getattr(library, kind)(*arguments, **{name: number})  # noqa: E731
        ends.append(outcome(step, make, x))
    assert_same(*ends)


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("kind", DROPOUTS)
def test_dropouts(device, kind, number):
    """Whether it is taken; which elements are dropped is another matter."""
    x, ends = torch.ones((3, 4, 2) if "1d" in kind else (3, 2, 4, 2), device=device), []
    for library in (normreg, torch.nn):
        end = outcome(lambda library=library: getattr(library, kind)(number)(x))
        ends.append(end.shape if isinstance(end, torch.Tensor) else end)
    assert type(ends[0]) is type(ends[1])
    if isinstance(ends[1], torch.Size):
        assert ends[0] == ends[1]


@pytest.mark.parametrize("number", [n for n in NUMBERS.values() if not isinstance(n, str)])
@pytest.mark.parametrize("name", ["eps", "momentum", "negative_slope"])
def test_batch_norm_with_an_activation(device, name, number):
    x = torch.randn(5, 4, 3, device=device)
    options = {"eps": 1e-5, "momentum": 0.1, "negative_slope": 0.01} | {name: number}
    slope = options.pop("negative_slope")
    ours = lambda: normreg.BatchNormAct1d(4, act="leaky_relu", negative_slope=slope, **options)  # noqa: E731
    theirs = lambda: torch.nn.Sequential(  # noqa: E731
        torch.nn.BatchNorm1d(4, **options), torch.nn.LeakyReLU(slope)
    )
    assert_same(outcome(step, ours, x), outcome(step, theirs, x))
