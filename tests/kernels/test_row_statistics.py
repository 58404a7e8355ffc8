"""What is saved of rows and groups is what it is called, and constant rows give exactly the bias."""

import pytest
import torch
from over_channels import nothing_fits_a_tile
from support.reference import HALVES, IN_TILES, WIDE, error

from normreg import functional

OPERATORS = torch.ops.normreg
EPS = 1e-5


def over_channels(x):
    """Rows as positions whose channels are their elements."""
    return x.t()[None].contiguous()


def in_groups(x):
    """Two rows as the groups of a sample, of as many channels as divide their width, up to four."""
    channels = 4 if x.shape[1] % 4 == 0 else 1
    return x.view(x.shape[0] // 2, 2 * channels, -1)


def layer_norm(x):
    return OPERATORS.layer_norm(x, None, None, x.shape[1:], EPS, x.dtype, True)[1]


def layer_norm_channels(x):
    return OPERATORS.layer_norm_channels(over_channels(x), None, None, EPS, x.dtype, True)[1]


def dropout_add_norm(x):
    absent = [None] * 6
    given = x.shape[1:], EPS, x.dtype, x.dtype, True, False, True
    return OPERATORS.dropout_add_norm(x, *absent, 0.0, 0, *given)[2]


def group_norm(x):
    return OPERATORS.group_norm(in_groups(x), None, None, 2, EPS, x.dtype, True)[1].view(-1, 3)


def rstd(var):
    return 1 / (var + EPS).sqrt()


# an operator's statistics of rows, and its spread as a function of the variance
CENTERED = {
    "layer_norm": (layer_norm, rstd),
    "layer_norm_channels": (layer_norm_channels, rstd),
    "dropout_add_norm": (dropout_add_norm, rstd),
    "group_norm": (group_norm, lambda var: var),
    "group_norm, split": (group_norm, lambda var: var),
}


@pytest.fixture(params=CENTERED)
def saved(request, monkeypatch):
    if request.param.endswith("split"):
        nothing_fits_a_tile(monkeypatch)
    return CENTERED[request.param]


@pytest.mark.parametrize(
    ("mean", "dtype"), [(0.0, torch.float32), (1e6, torch.float32), (1e2, torch.bfloat16)]
)
@pytest.mark.parametrize("cols", [100, IN_TILES, HALVES, WIDE])
def test_statistics_of_centred_rows(device, saved, cols, mean, dtype):
    """A mean's parts add up to it far beyond float32, whose unit is 0.06 at 10^6."""
    statistics, spread_of = saved
    x = (torch.randn(6, cols, device=device) + mean).to(dtype)
    found = statistics(x)
    assert found.dtype == torch.float32
    high, low, spread = found.double().unbind(-1)
    exact, unit = x.double(), torch.finfo(torch.float32).eps
    deviation = exact - exact.mean(1, keepdim=True)
    assert error(high + low, exact.mean(1)) <= 4 * unit * deviation.abs().max()
    assert (low.abs() <= deviation.abs().amax(1)).all()
    expected = spread_of(deviation.square().mean(1))
    assert error(spread / expected, torch.ones_like(expected)) <= 4 * unit


@pytest.mark.parametrize("mean", [0.0, 1e6])
@pytest.mark.parametrize("cols", [100, IN_TILES, HALVES, WIDE])
def test_statistics_of_rows_not_centred(device, cols, mean):
    x = torch.randn(6, cols, device=device) + mean
    _, found = OPERATORS.rms_norm(x, None, (cols,), EPS, x.dtype, True)
    expected = rstd(x.double().square().mean(1, keepdim=True))
    assert error(found.double() / expected, torch.ones_like(expected)) <= 4 * torch.finfo(torch.float32).eps


# 41 is the least number whose product with its reciprocal, each rounded to float32, is not one
@pytest.mark.parametrize("cols", [3, 41, 47, 100, 984, IN_TILES, HALVES, WIDE])
def test_constant_rows_of_any_value_give_exactly_the_bias(device, cols):
    dtype = torch.bfloat16 if cols == IN_TILES else torch.float32
    values = torch.randn(64, 1, dtype=torch.float64) * 10.0 ** torch.linspace(-3, 37, 64).view(64, 1)
    x = values.to(device, dtype).expand(64, cols).contiguous()
    weight, bias = torch.randn(2, cols, device=device, dtype=dtype)
    expected = bias.expand(64, cols)
    assert torch.equal(functional.layer_norm(x, (cols,), weight, bias), expected)
    fused = functional.dropout_add_layer_norm(x, torch.zeros_like(x), (cols,), weight, bias, p=0.0)
    assert torch.equal(fused, expected)
    y = functional.layer_norm_channels(over_channels(x), weight, bias)
    assert torch.equal(y, over_channels(expected))
    groups = in_groups(x)
    weight, bias = torch.randn(2, groups.shape[1], device=device, dtype=dtype)
    y = functional.group_norm(groups, 2, weight, bias)
    assert torch.equal(y, bias[:, None].expand_as(y))
