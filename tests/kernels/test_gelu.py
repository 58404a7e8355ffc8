"""Values and slopes of exact GELU over all inputs of 16 bits and densely in float32, against erf in float64.

A unit is the dtype's eps of the exact result, and of a slope, which is a sum of two terms that cancel at
-0.75, that of the larger of the result and Phi(z).
"""

import math

import pytest
import torch
from support.reference import DTYPES

from normreg import functional
from normreg.kernels import cpu

# The units of float32 at and above 0. The interpreter does not fuse multiplication and addition; exp2 and
# rsqrt of a GPU are approximate, by 1.4 and 1.1 units at most (PTX manual).
UNITS = {"compiled": 2.1, "interpreter": 2.75}.get(cpu.KERNELS, 6.0)
FLUSHED = 2.0**-123  # of smaller results exp(-z^2 / 2) is no normal number, and 0 on a GPU


def value_and_slope(x):
    x = x.detach().requires_grad_()
    y = functional.bias_act_dropout(x, act="gelu", p=0.0)
    return y.detach(), torch.autograd.grad(y, x, torch.ones_like(y))[0]


def exact(x):
    """Value, slope and Phi in float64, by erfc, which does not cancel."""
    z = x.double().cpu()
    phi = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    cdf = torch.special.erfc(-z / math.sqrt(2)) / 2
    return z * cdf, cdf + z * phi, cdf


def errors(x, results):
    """The errors of value and slope in units."""
    value, slope, cdf = exact(x)
    info = torch.finfo(x.dtype)
    for result, true, size in zip(
        results, (value, slope), (value, torch.maximum(slope.abs(), cdf)), strict=True
    ):
        unit = size.abs().clamp(min=info.smallest_normal) * info.eps
        yield ((result.double().cpu() - true).abs() / unit).masked_fill(true.abs() < FLUSHED, 0)


def all_finite(dtype, device):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[x.isfinite()].to(device)


def dense(device):
    """Float32 numbers from -14 to 9, as many of each size near 0."""
    near = torch.logspace(-30, 1, 60_000, base=2, dtype=torch.float64)
    return torch.cat([torch.linspace(-14, 9, 200_001, dtype=torch.float64), near, -near]).float().to(device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_all_inputs_of_16_bits(device, dtype):
    """Within a unit: half of it is the last rounding, or all of it where that truncates."""
    x = all_finite(dtype, device)
    for error in errors(x, value_and_slope(x)):
        assert not error.isnan().any()
        assert error.max() <= 1.1


def test_float32(device):
    """Below 0 half z^2 units are added, by which the rounding of z^2 moves exp(-z^2 / 2)."""
    x = dense(device)
    z = x.double().cpu().clamp(max=0)
    for error in errors(x, value_and_slope(x)):
        excess = error / (UNITS + z * z / 2)
        assert excess.max() <= 1, (x[excess.argmax()], error[excess.argmax()])


def test_float32_is_as_exact_as_torchs_formula(device):
    """Where 1 + erf cancels far more, and everywhere on average."""
    x = dense(device)
    cdf = 0.5 * (1 + torch.erf(x * 0.5**0.5))
    torchs = x * cdf, cdf + x * torch.exp(x * x * -0.5) / math.sqrt(2 * math.pi)
    eighth = ((x.cpu() + 16) * 8).long()
    for ours, theirs in zip(errors(x, value_and_slope(x)), errors(x, torchs), strict=True):
        assert (ours**2)[x.cpu() > -3].mean() <= (theirs**2)[x.cpu() > -3].mean()
        zeros = torch.zeros(256, dtype=torch.float64)
        largest = [zeros.scatter_reduce(0, eighth, error, "amax")[: (16 - 2) * 8] for error in (ours, theirs)]
        assert (largest[0] <= largest[1]).all()


def test_float64(device):
    """As exact as erf, which cancels below 0: in units of Phi at 0."""
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64, device=device)
    value, slope, _ = exact(x)
    for result, true in zip(value_and_slope(x), (value, slope), strict=True):
        assert ((result.cpu() - true).abs() / (1 + x.cpu().abs())).max() <= 4 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_beyond_the_finite(device, dtype):
    """nan stays nan, and nothing else becomes it: torch's own is nan at -inf, and its slope at either."""
    largest = torch.finfo(dtype).max
    inf = float("inf")
    x = torch.tensor([float("nan"), inf, -inf, largest, -largest, 0, -0.0], dtype=dtype, device=device)
    y, slope = value_and_slope(x)
    assert y[0].isnan()
    assert slope[0].isnan()
    assert y[1:].tolist() == [inf, 0, largest, 0, 0, 0]
    assert slope[1:].tolist() == [1, 0, 1, 0, 0.5, 0.5]
