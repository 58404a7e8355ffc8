"""BatchNorm as an autograd.Function. The formulas are in `normreg.kernels.batch_norm`."""

import torch

from normreg.kernels import batch_norm as kernels
from normreg.ops import gradient


def _forward(
    x,
    weight,
    bias,
    running_mean,
    running_var,
    num_batches_tracked,
    training,
    momentum,
    eps,
    save_statistics,
):
    if not training:
        return kernels.batch_norm_inference(x, weight, bias, running_mean, running_var, eps, save_statistics)
    result = kernels.batch_norm_forward(
        x,
        weight,
        bias,
        running_mean,
        running_var,
        num_batches_tracked,
        momentum,
        eps,
        save_statistics,
    )
    if num_batches_tracked is not None:
        torch.autograd.graph.increment_version(num_batches_tracked)
    return result


class BatchNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, running_mean, running_var, num_batches_tracked, training, momentum, eps):
        return _forward(
            x,
            weight,
            bias,
            running_mean,
            running_var,
            num_batches_tracked,
            training,
            momentum,
            eps,
            True,
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, _, _, _, ctx.training, _, ctx.eps = inputs
        _, mean, rstd = output
        ctx.parameter_dtype = (x if weight is bias is None else bias if weight is None else weight).dtype
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, mean, rstd)

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
                mean, rstd = (t.view(per_channel).to(dy.dtype) for t in (mean, rstd))
            weight = None if weight is None else weight.view(per_channel)
            normalized_dims = dims if ctx.training else None
            grads = gradient.normalization_backward(dy, x, weight, mean, rstd, normalized_dims, dims, wanted)
        else:
            grads = kernels.batch_norm_backward(
                dy,
                x,
                weight,
                mean,
                rstd,
                ctx.parameter_dtype,
                ctx.training,
                ctx.needs_input_grad[:3],
            )
        return *grads, None, None, None, None, None, None


def batch_norm(x, weight, bias, running_mean, running_var, num_batches_tracked, training, momentum, eps):
    arguments = (
        x,
        weight,
        bias,
        running_mean,
        running_var,
        num_batches_tracked,
        training,
        momentum,
        eps,
    )
    if gradient.wants_gradient(x, weight, bias):
        return BatchNormFunction.apply(*arguments)[0]
    return _forward(*arguments, save_statistics=False)[0]
