"""RMSNorm as an autograd.Function. The formulas are in `normreg.kernels.rms_norm`."""

import math

import torch

from normreg.kernels import rms_norm as kernels
from normreg.ops import gradient


class RMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, normalized_shape, eps, out_dtype):
        cols = math.prod(normalized_shape)
        return kernels.rms_norm_forward(x, weight, cols, eps, out_dtype, save_rstd=True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, ctx.normalized_shape, ctx.eps, _ = inputs
        _, rstd = output
        gradient.save_for_backward(ctx, x, weight, None, rstd)

    @staticmethod
    def backward(ctx, dy, _drstd):
        if dy is None:
            return (None,) * 5
        wanted = ctx.needs_input_grad[:2]
        x, weight, rstd = ctx.saved_tensors
        shape = ctx.normalized_shape
        if torch.is_grad_enabled():
            dims = tuple(range(-len(shape), 0))
            leading = tuple(range(x.dim() - len(shape)))
            mean, rstd = gradient.statistics(x, dims, ctx.eps, centered=False)
            dx, dweight, _ = gradient.normalization_backward(
                dy, x, weight, mean, rstd, dims, leading, (*wanted, False)
            )
        else:
            dx, dweight = kernels.rms_norm_backward(
                dy, x, weight, rstd, math.prod(shape), ctx.parameter_dtype, wanted
            )
        return dx, None if dweight is None else dweight.view(shape), None, None, None


def rms_norm(x, weight, normalized_shape, eps, out_dtype):
    if gradient.wants_gradient(x, weight):
        return RMSNormFunction.apply(x, weight, normalized_shape, eps, out_dtype)[0]
    cols = math.prod(normalized_shape)
    return kernels.rms_norm_forward(x, weight, cols, eps, out_dtype, save_rstd=False)[0]
