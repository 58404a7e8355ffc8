"""GroupNorm as an autograd.Function and as operators. The formulas are in `normreg.kernels.group_norm`."""

import torch

from normreg.kernels import group_norm as kernels
from normreg.kernels.dtypes import compute_dtype
from normreg.ops import gradient, operator


class GroupNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        output = kernels.group_norm_forward(*inputs)
        ctx.mark_non_differentiable(*output[1:])  # which InstanceNorm averages
        ctx.set_materialize_grads(False)  # nor makes zeros for them in each backward
        GroupNormFunction.save(ctx, inputs, output)
        return output

    @staticmethod
    def save(ctx, inputs, output):
        x, weight, bias, ctx.groups, ctx.eps, *_ = inputs
        _, mean, var = output
        gradient.save_for_backward(ctx, x, weight, bias, mean, var)

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 7
        wanted = ctx.needs_input_grad[:3]
        x, weight, mean, var = ctx.saved_tensors
        if gradient.wants_formula(dy):
            grads = _differentiable_backward(dy, x, weight, ctx.groups, ctx.eps, wanted)
        else:
            backward = OPERATOR_BACKWARD if operator.traces(dy) else kernels.group_norm_backward
            grads = backward(dy, x, weight, mean, var, ctx.groups, ctx.eps, ctx.parameter_dtype, wanted)
        return *grads, None, None, None, None


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


def fake_forward(x, weight, bias, groups, eps, out_dtype, save_statistics):
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    if not save_statistics:
        return y, None, None
    mean, var = (x.new_empty((x.shape[0], groups), dtype=compute_dtype(x.dtype)) for _ in range(2))
    return y, mean, var


def fake_backward(dy, x, weight, mean, var, groups, eps, parameter_dtype, wanted):
    return operator.fake_gradients(x, x.shape[1:2], parameter_dtype, wanted)


OPERATOR = operator.register(
    "group_norm(Tensor x, Tensor? weight, Tensor? bias, SymInt groups, float eps, ScalarType out_dtype, "
    "bool save_statistics) -> (Tensor y, Tensor mean, Tensor var)",
    kernels.group_norm_forward, fake_forward, GroupNormFunction,
)  # fmt: skip
OPERATOR_BACKWARD = operator.register(
    "group_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor mean, Tensor var, SymInt groups, "
    "float eps, ScalarType parameter_dtype, bool[3] wanted) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    kernels.group_norm_backward, fake_backward,
)  # fmt: skip


def normalized(x, weight, bias, groups, eps, out_dtype, save_statistics):
    """y, mean and var, recorded by autograd."""
    arguments = (x, weight, bias, groups, eps, out_dtype, save_statistics)
    if torch.compiler.is_compiling():
        return OPERATOR(*arguments)
    if gradient.wants_gradient(x, weight, bias):
        return GroupNormFunction.apply(*arguments)
    return kernels.group_norm_forward(*arguments)


def group_norm(x, weight, bias, groups, eps, out_dtype):
    wants_gradient = gradient.wants_gradient(x, weight, bias)
    return normalized(x, weight, bias, groups, eps, out_dtype, wants_gradient)[0]
