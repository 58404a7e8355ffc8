"""LayerNorm over channels as an autograd.Function; formulas in `normreg.kernels.layer_norm_channels`."""

import torch

from normreg.kernels import layer_norm_channels as kernels
from normreg.ops import gradient


class LayerNormChannelsFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, out_dtype):
        y, mean, rstd = kernels.layer_norm_channels_forward(
            x, weight, bias, eps, out_dtype, save_statistics=True
        )
        ctx.eps = eps
        gradient.save_for_backward(ctx, x, weight, bias, mean, rstd)
        return y, mean, rstd

    @staticmethod
    def backward(ctx, dy, _dmean, _drstd):
        if dy is None:
            return (None,) * 5
        wanted = ctx.needs_input_grad[:3]
        x, weight, mean, rstd = ctx.saved_tensors
        if gradient.wants_formula(dy):
            if weight is not None:
                weight = weight.view(-1, *(1,) * (x.dim() - 2))
            mean, rstd = gradient.statistics(x, (1,), ctx.eps)
            others = (0, *range(2, x.dim()))
            grads = gradient.normalization_backward(dy, x, weight, mean, rstd, (1,), others, wanted)
        else:
            grads = kernels.layer_norm_channels_backward(
                dy, x, weight, mean, rstd, ctx.parameter_dtype, wanted
            )
        return *grads, None, None


def layer_norm_channels(x, weight, bias, eps, out_dtype):
    if gradient.wants_gradient(x, weight, bias):
        return LayerNormChannelsFunction.apply(x, weight, bias, eps, out_dtype)[0]
    return kernels.layer_norm_channels_forward(x, weight, bias, eps, out_dtype, save_statistics=False)[0]
