"""Bias, activation and dropout. The formulas are in `normreg.kernels.dropout.bias_act`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from normreg.kernels.dropout import bias_act as kernels
from normreg.kernels.dropout.drop import Drop
from normreg.kernels.dtypes import compute_dtype
from normreg.ops import gradient
from normreg.ops.activations import DZ
from normreg.ops.dropout_add import draw
from normreg.ops.operation import Operation, Operator, Seed


def run(
    x: Tensor,
    bias: Tensor | None,
    seed: Seed | None,
    p: float,
    bits: int,
    act: str | None,
    negative_slope: float,
) -> Tensor:
    return kernels.bias_act_dropout_forward(x, bias, act, negative_slope, Drop(p, bits), seed)


def run_backward(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    seed: Seed | None,
    p: float,
    bits: int,
    act: str | None,
    negative_slope: float,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    drop = Drop(p, bits)
    return kernels.bias_act_dropout_backward(dy, x, bias, act, negative_slope, drop, seed, wanted)


def fake(x):
    return x.new_empty(x.shape)


def fake_backward(x, bias, wanted):
    want_dx, want_dbias = wanted
    return x.new_empty(x.shape) if want_dx else None, bias.new_empty(bias.shape) if want_dbias else None


def formula(dy, x, bias, seed, p, bits, act, negative_slope, wanted):
    want_dx, want_dbias = wanted
    dtype = compute_dtype(x.dtype)
    dy, z = dy.to(dtype), x.to(dtype)
    if bits:  # the mask is the branch of ones
        zeros = None if bias is None else torch.zeros_like(bias, requires_grad=False)
        dy = dy * run(torch.ones(x.shape, dtype=dtype, device=x.device), zeros, seed, p, bits, None, 0.0)
    if bias is not None:
        z = z + bias
    derivative = DZ[act]
    dz = derivative(dy, z, negative_slope)
    dbias = None
    if want_dbias:
        dbias = gradient.sum_over(dz, tuple(range(x.dim() - 1))).to(bias.dtype)
    return dz.to(x.dtype) if want_dx else None, dbias


backward = Operator("bias_act_dropout_backward", run_backward, fake_backward, ("dx", "dbias"))
recorded = Operation("bias_act_dropout", run, fake, ("y",), backward, formula, gradients=2)


def bias_act_dropout(x, bias, act, negative_slope, rule, generator):
    return recorded(x, bias, draw(x, rule.bits, generator), rule.p, rule.bits, act, negative_slope)
