"""RMSNorm as an autograd.Function and operators. Formulas are in `normreg.kernels.layer_norm.rms_norm`."""

import math

import torch

from normreg.kernels.layer_norm import rms_norm as kernels
from normreg.ops import gradient, layer_norm, operator


def _forward(x, weight, normalized_shape, eps, out_dtype, save_rstd):
    return kernels.rms_norm_forward(x, weight, math.prod(normalized_shape), eps, out_dtype, save_rstd)


def _backward(dy, x, weight, rstd, normalized_shape, parameter_dtype, wanted):
    cols = math.prod(normalized_shape)
    dx, dweight = kernels.rms_norm_backward(dy, x, weight, rstd, cols, parameter_dtype, wanted)
    return dx, None if dweight is None else dweight.view(normalized_shape)


class RMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        output = _forward(*inputs)
        RMSNormFunction.save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def save(ctx, inputs, output):
        x, weight, ctx.normalized_shape, ctx.eps, *_ = inputs
        _, rstd = output
        gradient.save_for_backward(ctx, x, weight, None, rstd)

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 6
        wanted = ctx.needs_input_grad[:2]
        x, weight, rstd = ctx.saved_tensors
        shape = ctx.normalized_shape
        if gradient.wants_formula(dy):
            dims = tuple(range(-len(shape), 0))
            leading = tuple(range(x.dim() - len(shape)))
            mean, rstd = gradient.statistics(x, dims, ctx.eps, centered=False)
            dx, dweight, _ = gradient.normalization_backward(
                dy, x, weight, mean, rstd, dims, leading, (*wanted, False)
            )
        else:
            backward = OPERATOR_BACKWARD if operator.traces(dy) else _backward
            dx, dweight = backward(dy, x, weight, rstd, shape, ctx.parameter_dtype, wanted)
        return dx, dweight, None, None, None, None


def fake_forward(x, weight, normalized_shape, eps, out_dtype, save_rstd):
    y, _, rstd = layer_norm.fake_forward(x, weight, None, normalized_shape, eps, out_dtype, save_rstd)
    return y, rstd


def fake_backward(dy, x, weight, rstd, normalized_shape, parameter_dtype, wanted):
    return operator.fake_gradients(x, normalized_shape, parameter_dtype, (*wanted, False))[:2]


OPERATOR = operator.register(
    "rms_norm(Tensor x, Tensor? weight, SymInt[] normalized_shape, float eps, ScalarType out_dtype, "
    "bool save_rstd) -> (Tensor y, Tensor rstd)",
    _forward, fake_forward, RMSNormFunction,
)  # fmt: skip
OPERATOR_BACKWARD = operator.register(
    "rms_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor rstd, SymInt[] normalized_shape, "
    "ScalarType parameter_dtype, bool[2] wanted) -> (Tensor dx, Tensor dweight)",
    _backward, fake_backward,
)  # fmt: skip


def rms_norm(x, weight, normalized_shape, eps, out_dtype):
    wants_gradient = gradient.wants_gradient(x, weight)
    arguments = (x, weight, normalized_shape, eps, out_dtype, wants_gradient)
    return operator.first_result(_forward, RMSNormFunction, OPERATOR, arguments, wants_gradient)
