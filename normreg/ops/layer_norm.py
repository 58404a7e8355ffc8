"""LayerNorm as an autograd.Function and as operators. The formulas are in `normreg.kernels.layer_norm`."""

import math

import torch

from normreg.kernels import layer_norm as kernels
from normreg.kernels.dtypes import compute_dtype
from normreg.ops import gradient, operator


def _forward(x, weight, bias, normalized_shape, eps, out_dtype, save_statistics):
    cols = math.prod(normalized_shape)
    return kernels.layer_norm_forward(x, weight, bias, cols, eps, out_dtype, save_statistics)


def _backward(dy, x, weight, mean, rstd, normalized_shape, parameter_dtype, wanted):
    cols = math.prod(normalized_shape)
    dx, *grads = kernels.layer_norm_backward(dy, x, weight, mean, rstd, cols, parameter_dtype, wanted)
    return dx, *(None if grad is None else grad.view(normalized_shape) for grad in grads)


class LayerNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        output = _forward(*inputs)
        LayerNormFunction.save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def save(ctx, inputs, output):
        x, weight, bias, ctx.normalized_shape, ctx.eps, *_ = inputs
        _, mean, rstd = output
        gradient.save_for_backward(ctx, x, weight, bias, mean, rstd)

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 7
        wanted = ctx.needs_input_grad[:3]
        x, weight, mean, rstd = ctx.saved_tensors
        shape = ctx.normalized_shape
        if gradient.wants_formula(dy):
            dims = tuple(range(-len(shape), 0))
            leading = tuple(range(x.dim() - len(shape)))
            mean, rstd = gradient.statistics(x, dims, ctx.eps)
            grads = gradient.normalization_backward(dy, x, weight, mean, rstd, dims, leading, wanted)
        else:
            backward = OPERATOR_BACKWARD if operator.traces(dy) else _backward
            grads = backward(dy, x, weight, mean, rstd, shape, ctx.parameter_dtype, wanted)
        return *grads, None, None, None, None


def fake_forward(x, weight, bias, normalized_shape, eps, out_dtype, save_statistics):
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    if not save_statistics:
        return y, None, None
    rows = math.prod(x.shape[: x.dim() - len(normalized_shape)])
    mean, rstd = (x.new_empty(rows, dtype=compute_dtype(x.dtype)) for _ in range(2))
    return y, mean, rstd


def fake_backward(dy, x, weight, mean, rstd, normalized_shape, parameter_dtype, wanted):
    return operator.fake_gradients(x, normalized_shape, parameter_dtype, wanted)


OPERATOR = operator.register(
    "layer_norm(Tensor x, Tensor? weight, Tensor? bias, SymInt[] normalized_shape, float eps, "
    "ScalarType out_dtype, bool save_statistics) -> (Tensor y, Tensor mean, Tensor rstd)",
    _forward, fake_forward, LayerNormFunction,
)  # fmt: skip
OPERATOR_BACKWARD = operator.register(
    "layer_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor mean, Tensor rstd, "
    "SymInt[] normalized_shape, ScalarType parameter_dtype, bool[3] wanted) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias)",
    _backward, fake_backward,
)  # fmt: skip


def layer_norm(x, weight, bias, normalized_shape, eps, out_dtype):
    wants_gradient = gradient.wants_gradient(x, weight, bias)
    arguments = (x, weight, bias, normalized_shape, eps, out_dtype, wants_gradient)
    return operator.first_result(_forward, LayerNormFunction, OPERATOR, arguments, wants_gradient)
