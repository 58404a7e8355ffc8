"""Bias, activation and dropout. The formulas are in `normreg.kernels.dropout.bias_act`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from normreg.kernels.dropout import bias_act as kernels
from normreg.kernels.dropout.drop import Drop
from normreg.kernels.dtypes import compute_dtype
from normreg.ops import gradient
from normreg.ops.activations import DZ, activation_in_torch
from normreg.ops.dropout_add import branch, draw
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
    dtype = compute_dtype(x.dtype)
    dy = dy.to(dtype)
    if bits:  # the mask is the branch of ones
        zeros = None if bias is None else torch.zeros_like(bias, requires_grad=False)
        dy = dy * run(torch.ones(x.shape, dtype=dtype, device=x.device), zeros, seed, p, bits, None, 0.0)
    return gradients_of(dy, x, bias, act, negative_slope, wanted)


def z_of(x, bias):
    """The activation's input."""
    z = x.to(compute_dtype(x.dtype))
    return z if bias is None else z + bias


def gradients_of(dy, x, bias, act, negative_slope, wanted):
    """dx and dbias, of the gradient of the activation's result."""
    want_dx, want_dbias = wanted
    z, derivative = z_of(x, bias), DZ[act]
    dz = derivative(dy, z, negative_slope)
    dbias = None
    if want_dbias:
        dbias = gradient.sum_over(dz, tuple(range(x.dim() - 1))).to(bias.dtype)
    return dz.to(x.dtype) if want_dx else None, dbias


def dropped(x, bias, seed, p, bits):
    """Dropout of what has x's shape."""
    _, cols = kernels.rows_and_cols(x, bias)
    return branch(x, None, None, seed, Drop(p, bits), cols, compute_dtype(x.dtype))


def decomposed(x, bias, seed, p, bits, act, negative_slope):
    return dropped(activation_in_torch(z_of(x, bias), act, negative_slope), bias, seed, p, bits)


def decomposed_backward(dy, x, bias, seed, p, bits, act, negative_slope, wanted):
    dy = dropped(dy.to(compute_dtype(x.dtype)), bias, seed, p, bits)
    return gradients_of(dy, x, bias, act, negative_slope, wanted)


backward = Operator(
    "bias_act_dropout_backward",
    run_backward,
    fake_backward,
    ("dx", "dbias"),
    decomposition=decomposed_backward,
)
recorded = Operation(
    "bias_act_dropout", run, fake, ("y",), backward, formula, gradients=2, decomposition=decomposed
)


def bias_act_dropout(x, bias, act, negative_slope, rule, generator):
    return recorded(x, bias, draw(x, rule.bits, generator), rule.p, rule.bits, act, negative_slope)
