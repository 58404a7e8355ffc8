"""Bias, activation and dropout as an autograd.Function and as operators.

The formulas are in `normreg.kernels.dropout.bias_act`.
"""

import torch

from normreg.kernels.device.branch import Branch
from normreg.kernels.dropout import bias_act as kernels
from normreg.kernels.launch import contiguous
from normreg.ops import gradient, operator
from normreg.ops.activations import DZ
from normreg.ops.dropout_add import draw
from normreg.ops.seed import save as save_seed
from normreg.ops.seed import saved as saved_seed


def _forward(x, bias, seed, p, bits, act, negative_slope):
    x, bias = contiguous(x, bias)
    return kernels.bias_act_dropout_forward(x, bias, act, negative_slope, Branch(p, bits), seed)


def _backward(dy, x, bias, seed, p, bits, act, negative_slope, wanted):
    dy, x, bias = contiguous(dy, x, bias)
    rule = Branch(p, bits)
    return kernels.bias_act_dropout_backward(dy, x, bias, act, negative_slope, rule, seed, wanted)


class BiasActDropoutFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        BiasActDropoutFunction.save(ctx, inputs)
        return _forward(*inputs)

    @staticmethod
    def save(ctx, inputs, output=None):
        x, bias, seed, *ctx.options = inputs
        save_seed(ctx, seed, x, bias)

    @staticmethod
    def backward(ctx, dy):
        wanted = ctx.needs_input_grad[:2]
        (x, bias), seed = saved_seed(ctx, dy)
        if gradient.wants_formula(dy):
            dx, dbias = _formula(dy, x, bias, seed, *ctx.options, wanted)
        else:
            backward = OPERATOR_BACKWARD if operator.traces(dy) else _backward
            dx, dbias = backward(dy, x, bias, seed, *ctx.options, wanted)
        return dx, dbias, *[None] * 5


def _formula(dy, x, bias, seed, p, bits, act, negative_slope, wanted):
    want_dx, want_dbias = wanted
    dtype = torch.promote_types(x.dtype, torch.float32)
    dy, z = dy.to(dtype), x.to(dtype)
    if bits:  # the mask is the branch of ones
        zeros = None if bias is None else torch.zeros_like(bias, requires_grad=False)
        dy = dy * _forward(torch.ones(x.shape, dtype=dtype, device=x.device), zeros, seed, p, bits, None, 0.0)
    if bias is not None:
        z = z + bias
    formula = DZ[act]
    dz = formula(dy, z, negative_slope)
    dbias = None
    if want_dbias:
        dbias = gradient.sum_over(dz, tuple(range(x.dim() - 1))).to(bias.dtype)
    return dz.to(x.dtype) if want_dx else None, dbias


def fake_forward(x, bias, seed, p, bits, act, negative_slope):
    return x.new_empty(x.shape)


def fake_backward(dy, x, bias, seed, p, bits, act, negative_slope, wanted):
    want_dx, want_dbias = wanted
    return x.new_empty(x.shape) if want_dx else None, bias.new_empty(bias.shape) if want_dbias else None


RULE = "Tensor? seed, float p, int bits, str? act, float negative_slope"
OPERATOR = operator.register(
    f"bias_act_dropout(Tensor x, Tensor? bias, {RULE}) -> Tensor",
    _forward, fake_forward, BiasActDropoutFunction,
)  # fmt: skip
OPERATOR_BACKWARD = operator.register(
    f"bias_act_dropout_backward(Tensor dy, Tensor x, Tensor? bias, {RULE}, bool[2] wanted) "
    "-> (Tensor dx, Tensor dbias)",
    _backward, fake_backward,
)  # fmt: skip


def bias_act_dropout(x, bias, act, negative_slope, rule, generator):
    arguments = (x, bias, draw(x, rule.bits, generator), rule.p, rule.bits, act, negative_slope)
    if torch.compiler.is_compiling():
        return OPERATOR(*arguments)
    if gradient.wants_gradient(x, bias):
        return BiasActDropoutFunction.apply(*arguments)
    return _forward(*arguments)
