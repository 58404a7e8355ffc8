"""Values and slopes of smooth activations over all inputs of 16 bits and densely in float32, against float64.

Each is z g(z), and g rises from 0 to 1. A unit is the dtype's eps of the exact result, and of a slope, which
is a sum of two terms that cancel below 0, that of the larger of the result and g(z).
"""

import math

import pytest
import torch
import torch.nn.functional as F
from support.reference import DTYPES

from normreg import functional
from normreg.kernels import cpu

SMOOTH = ("gelu", "gelu_tanh", "silu")
# The units of float32 above 0, and what is added for each of |z| below. The interpreter does not fuse
# multiplication and addition; exp2 and rsqrt of a GPU are approximate, by 1.4 and 1.1 units (PTX manual).
UNITS, UNITS_BELOW = {"compiled": (2.1, 0.45), "interpreter": (2.75, 0.55)}.get(cpu.KERNELS, (6.0, 0.55))
FLUSHED = 2.0**-119  # of smaller results exp(-z^2 / 2) or exp(z) is no normal number, and 0 on a GPU


def value_and_slope(x, act):
    x = x.detach().requires_grad_()
    y = functional.bias_act_dropout(x, act=act, p=0.0)
    return y.detach(), torch.autograd.grad(y, x, torch.ones_like(y))[0]


def exact(x, act):
    """Value, slope and g in float64, none of which cancel but the slope."""
    z = x.double().cpu()
    if act == "gelu":
        slope = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        g = torch.special.erfc(-z / math.sqrt(2)) / 2
    else:
        u, du = (z, 1) if act == "silu" else twice_u(z)
        e = torch.exp(-u.abs())
        g = torch.where(u >= 0, 1, e) / (1 + e)
        slope = e / (1 + e) ** 2 * du
    return z * g, g + (z * slope).nan_to_num(0), g


def twice_u(z):
    """2 u of gelu_tanh, and its derivative."""
    scale = 2 * math.sqrt(2 / math.pi)
    return scale * (z + 0.044715 * z**3), scale * (1 + 3 * 0.044715 * z * z)


def errors(x, results, act):
    """The errors of value and slope in units."""
    value, slope, g = exact(x, act)
    info = torch.finfo(x.dtype)
    for result, true, size in zip(
        results, (value, slope), (value, torch.maximum(slope.abs(), g)), strict=True
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


@pytest.mark.parametrize("act", SMOOTH)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_all_inputs_of_16_bits(act, dtype, device):
    """Within a unit: half of it is the last rounding, or all of it where that truncates."""
    x = all_finite(dtype, device)
    for error in errors(x, value_and_slope(x, act), act):
        assert not error.isnan().any()
        assert error.max() <= 1.1


def test_gelu_in_float32(device):
    """Below 0 the fit of Q is less close; a rounded z^2 alone would move exp(-z^2 / 2) by z^2 / 2 units."""
    x = dense(device)
    z = x.double().cpu().clamp(max=0)
    for error in errors(x, value_and_slope(x, "gelu"), "gelu"):
        excess = error / (UNITS + UNITS_BELOW * -z)
        assert excess.max() <= 1, (x[excess.argmax()], error[excess.argmax()])


def test_silu_in_float32(device):
    """As far as exp(z) is a normal number; with a rounded z log2(e) alone it errs by z / 2 units."""
    x = torch.linspace(-87, 90, 200_001, device=device)
    value, slope = errors(x, value_and_slope(x, "silu"), "silu")
    assert value.max() <= UNITS
    assert slope.max() <= UNITS * 1.75  # two products of sums more


@pytest.mark.parametrize("act", ["gelu", "gelu_tanh"])
def test_float32_is_as_exact_as_torch(act, device):
    """Where 1 + erf or 1 + tanh cancels far more, and everywhere on average."""
    x = dense(device)
    z = x.detach().requires_grad_()
    y = F.gelu(z, approximate="tanh" if act == "gelu_tanh" else "none")
    torchs = y.detach(), torch.autograd.grad(y, z, torch.ones_like(y))[0]
    eighth = ((x.cpu() + 16) * 8).long()
    for ours, theirs in zip(errors(x, value_and_slope(x, act), act), errors(x, torchs, act), strict=True):
        assert (ours**2)[x.cpu() > -3].mean() <= (theirs**2)[x.cpu() > -3].mean()
        zeros = torch.zeros(256, dtype=torch.float64)
        largest = [zeros.scatter_reduce(0, eighth, error, "amax")[: (16 - 2) * 8] for error in (ours, theirs)]
        assert (largest[0] <= largest[1]).all()


def test_gelu_in_float64(device):
    """As exact as erf, which cancels below 0: in units of Phi at 0."""
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64, device=device)
    value, slope, _ = exact(x, "gelu")
    for result, true in zip(value_and_slope(x, "gelu"), (value, slope), strict=True):
        assert ((result.cpu() - true).abs() / (1 + x.cpu().abs())).max() <= 4 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gelu_beyond_the_finite(device, dtype):
    """nan stays nan, and nothing else becomes it: torch's own is nan at -inf, and its slope at either."""
    largest = torch.finfo(dtype).max
    inf = float("inf")
    x = torch.tensor([float("nan"), inf, -inf, largest, -largest, 0, -0.0], dtype=dtype, device=device)
    y, slope = value_and_slope(x, "gelu")
    assert y[0].isnan()
    assert slope[0].isnan()
    assert y[1:].tolist() == [inf, 0, largest, 0, 0, 0]
    assert slope[1:].tolist() == [1, 0, 1, 0, 0.5, 0.5]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_silu_beyond_the_finite(device, dtype):
    """nan stays nan; of -inf, where torch has nan, no number is promised."""
    largest = torch.finfo(dtype).max
    x = torch.tensor([float("nan"), float("inf"), largest, -largest, 0, -0.0], dtype=dtype, device=device)
    y, slope = value_and_slope(x, "silu")
    assert y[0].isnan()
    assert slope[0].isnan()
    assert y[1:].tolist() == [float("inf"), largest, 0, 0, 0]
    assert slope[2:].tolist() == [1, 0, 0.5, 0.5]
