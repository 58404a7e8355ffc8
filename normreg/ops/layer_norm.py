"""LayerNorm as an autograd.Function. The formulas are in `normreg.kernels.layer_norm`."""

import math

import torch

from normreg.kernels import layer_norm as kernels
from normreg.ops import gradient


class LayerNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, normalized_shape, eps, out_dtype):
        cols = math.prod(normalized_shape)
        return kernels.layer_norm_forward(x, weight, bias, cols, eps, out_dtype, save_statistics=True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, ctx.normalized_shape, ctx.eps, _ = inputs
        _, mean, rstd = output
        gradient.save_for_backward(ctx, x, weight, bias, mean, rstd)

    @staticmethod
    def backward(ctx, dy, _dmean, _drstd):
        if dy is None:
            return (None,) * 6
        wanted = ctx.needs_input_grad[:3]
        x, weight, mean, rstd = ctx.saved_tensors
        shape = ctx.normalized_shape
        if torch.is_grad_enabled():
            dims = tuple(range(-len(shape), 0))
            leading = tuple(range(x.dim() - len(shape)))
            mean, rstd = gradient.statistics(x, dims, ctx.eps)
            grads = gradient.normalization_backward(dy, x, weight, mean, rstd, dims, leading, wanted)
        else:
            grads = kernels.layer_norm_backward(
                dy, x, weight, mean, rstd, math.prod(shape), ctx.parameter_dtype, wanted
            )
        dx, dweight, dbias = grads
        dweight, dbias = (None if grad is None else grad.view(shape) for grad in (dweight, dbias))
        return dx, dweight, dbias, None, None, None


def layer_norm(x, weight, bias, normalized_shape, eps, out_dtype):
    if gradient.wants_gradient(x, weight, bias):
        return LayerNormFunction.apply(x, weight, bias, normalized_shape, eps, out_dtype)[0]
    cols = math.prod(normalized_shape)
    return kernels.layer_norm_forward(x, weight, bias, cols, eps, out_dtype, save_statistics=False)[0]
