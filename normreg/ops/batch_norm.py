"""BatchNorm as an autograd.Function. The formulas are in `normreg.kernels.batch_norm`."""

import torch

from normreg.kernels import batch_norm as kernels
from normreg.ops import gradient


def _forward(x, weight, bias, running_mean, running_var, tracked, training, momentum, eps, save_statistics):
    statistics = (running_mean, running_var)
    if not training:
        return kernels.batch_norm_inference(x, weight, bias, *statistics, eps, save_statistics)
    result = kernels.batch_norm_forward(x, weight, bias, *statistics, tracked, momentum, eps, save_statistics)
    if tracked is not None:
        torch.autograd.graph.increment_version(tracked)  # which the kernel's store does not do
    return result


class BatchNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, running_mean, running_var, tracked, training, momentum, eps):
        buffers = (running_mean, running_var, tracked)
        return _forward(x, weight, bias, *buffers, training, momentum, eps, save_statistics=True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, _, _, _, ctx.training, _, ctx.eps = inputs
        _, mean, rstd = output
        gradient.save_for_backward(ctx, x, weight, bias, mean, rstd)

    @staticmethod
    def backward(ctx, dy, _dmean, _drstd):
        if dy is None:
            return (None,) * 9
        wanted = ctx.needs_input_grad[:3]
        x, weight, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            dims = (0, *range(2, x.dim()))
            per_channel = (1, -1, *[1] * (x.dim() - 2))
            if ctx.training:
                mean, rstd = gradient.statistics(x, dims, ctx.eps)
            else:
                mean, rstd = mean.view(per_channel), rstd.view(per_channel)
            weight = None if weight is None else weight.view(per_channel)
            normalized_dims = dims if ctx.training else None
            grads = gradient.normalization_backward(dy, x, weight, mean, rstd, normalized_dims, dims, wanted)
        else:
            grads = kernels.batch_norm_backward(
                dy, x, weight, mean, rstd, ctx.parameter_dtype, ctx.training, wanted
            )
        return *grads, None, None, None, None, None, None


def batch_norm(x, weight, bias, running_mean, running_var, tracked, training, momentum, eps):
    arguments = (x, weight, bias, running_mean, running_var, tracked, training, momentum, eps)
    if gradient.wants_gradient(x, weight, bias):
        return BatchNormFunction.apply(*arguments)[0]
    return _forward(*arguments, save_statistics=False)[0]
