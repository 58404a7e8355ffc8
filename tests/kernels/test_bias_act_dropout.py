"""Bias, activation and dropout, against torch's operators under the same mask."""

import pytest
import torch
import torch.nn.functional as F
from branches import factors, generator, made
from formulas import ACTIVATIONS
from support.reference import assert_agrees

from normreg import functional


@pytest.mark.parametrize("act", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bias_act_dropout(device, dtype, act):
    x, bias = made(device, dtype, 3, 72), made(device, dtype, 72)
    keep, scale = factors(functional.bias_act_dropout, x, bias, act, 0.3)
    assert_agrees(
        lambda x, bias: functional.bias_act_dropout(
            x, bias, act, 0.3, negative_slope=0.3, generator=generator(device)
        ),
        lambda x, bias: torch.where(keep, ACTIVATIONS[act](x + bias) * scale, 0),
        [x, bias],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (9, 3), (4, 1001), (2, 3, 4100)], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_bias_act_dropout_of_any_shape(device, dtype, shape, p):
    x, bias = made(device, dtype, *shape), made(device, dtype, shape[-1])
    keep, scale = factors(functional.bias_act_dropout, x, bias, "gelu", 0.3)
    if p == 0:
        keep, scale = torch.ones_like(keep), 1.0
    assert_agrees(
        lambda x, bias: functional.bias_act_dropout(x, bias, "gelu", p, generator=generator(device)),
        lambda x, bias: torch.where(keep, F.gelu(x + bias) * scale, 0),
        [x, bias],
    )
    if dtype == torch.float32:
        keep, scale = factors(functional.bias_act_dropout, x, None, "relu", 0.3)
        assert_agrees(
            lambda x: functional.bias_act_dropout(x, act="relu", p=0.3, generator=generator(device)),
            lambda x: torch.where(keep, F.relu(x) * scale, 0),
            [x],
        )


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["dx", "dbias"])
def test_either_gradient_of_bias_act_dropout(device, wanted):
    x, bias = (t.requires_grad_(want) for t, want in zip((torch.randn(5, 8), torch.randn(8)), wanted))
    x, bias = x.to(device), bias.to(device)
    keep, scale = factors(functional.bias_act_dropout, x, bias, "silu", 0.3)
    given = [t.detach().requires_grad_(want) for t, want in zip((x, bias), wanted)]
    assert_agrees(
        lambda x, bias: functional.bias_act_dropout(x, bias, "silu", 0.3, generator=generator(device)),
        lambda x, bias: torch.where(keep, F.silu(x + bias) * scale, 0),
        given,
    )
