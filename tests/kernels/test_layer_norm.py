"""LayerNorm: what it has beside other operations over rows, of which test_rows.py has the tests."""

import pytest
import torch
from over_rows import LAYER_NORM
from support.reference import HALVES, IN_TILES, WIDE, assert_agrees, copies, error, run, unit

import normreg


@pytest.mark.parametrize("cols", [100, IN_TILES, HALVES, WIDE])
def test_an_outlier_in_front_does_not_hurt(device, cols):
    """No sum is relative to the first element of rows, which need not be near the others."""
    x = torch.randn(3, cols, device=device) + 1e4
    x[:, 0] = 0.0
    assert_agrees(*LAYER_NORM.functions((cols,)), [x.requires_grad_(), None, None])


@pytest.mark.parametrize("cols", [100, IN_TILES, HALVES, WIDE])
def test_a_large_mean_costs_nothing(device, cols):
    """Where torch's float32 mean is off by a thirtieth of a standard deviation, ours is exact."""
    inputs = LAYER_NORM.inputs((2, cols), (cols,), torch.float32, device, mean=1e6)
    ours, theirs = LAYER_NORM.functions((cols,))
    dy = torch.randn(2, cols, device=device)
    results = run(ours, inputs, dy)
    exact = run(theirs, copies(inputs, torch.float64), dy.double())
    for result, truth in zip(results, exact, strict=True):
        assert error(result, truth) <= 8 * unit(truth, torch.float32)


@pytest.mark.parametrize("value", [0.0, 1e-30, 3.0, 1e6, 3e38])
@pytest.mark.parametrize("cols", [1, 3, 100, IN_TILES, HALVES, WIDE])
def test_constant_rows_give_the_bias(device, cols, value):
    dtype = torch.bfloat16 if cols == IN_TILES else torch.float32
    x = torch.full((3, cols), value, device=device, dtype=dtype, requires_grad=True)
    weight, bias = torch.randn(2, cols, device=device, dtype=dtype)
    y = normreg.functional.layer_norm(x, (cols,), weight, bias)
    assert torch.equal(y, bias.expand(3, cols))
    (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert dx.isfinite().all()
