"""GroupNorm as an autograd.Function. The formulas are in `normreg.kernels.group_norm`."""

import torch

from normreg.kernels import group_norm as kernels
from normreg.ops import gradient


class GroupNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps, out_dtype):
        y, mean, var = kernels.group_norm_forward(
            x, weight, bias, groups, eps, out_dtype, save_statistics=True
        )
        ctx.groups, ctx.eps = groups, eps
        gradient.save_for_backward(ctx, x, weight, bias, mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx, dy, _dmean, _dvar):
        if dy is None:
            return (None,) * 6
        wanted = ctx.needs_input_grad[:3]
        x, weight, mean, var = ctx.saved_tensors
        if gradient.wants_formula(dy):
            grads = _differentiable_backward(dy, x, weight, ctx.groups, ctx.eps, wanted)
        else:
            grads = kernels.group_norm_backward(
                dy, x, weight, mean, var, ctx.groups, ctx.eps, ctx.parameter_dtype, wanted
            )
        return *grads, None, None, None


def _differentiable_backward(dy, x, weight, groups, eps, wanted):
    """dx, dweight and dbias in torch operations, over x as (N, groups, channels of a group, positions)."""
    shape = (x.shape[0], groups, x.shape[1] // groups, -1)
    in_groups = x.reshape(shape)
    mean, rstd = gradient.statistics(in_groups, (2, 3), eps)
    weight = None if weight is None else weight.view(1, *shape[1:3], 1)
    dx, dweight, dbias = gradient.normalization_backward(
        dy.reshape(shape), in_groups, weight, mean, rstd, (2, 3), (0, 3), wanted
    )
    dx = None if dx is None else dx.view(x.shape)
    dweight, dbias = (None if grad is None else grad.reshape(x.shape[1]) for grad in (dweight, dbias))
    return dx, dweight, dbias


def group_norm(x, weight, bias, groups, eps, out_dtype):
    if gradient.wants_gradient(x, weight, bias):
        return GroupNormFunction.apply(x, weight, bias, groups, eps, out_dtype)[0]
    return kernels.group_norm_forward(x, weight, bias, groups, eps, out_dtype, save_statistics=False)[0]
