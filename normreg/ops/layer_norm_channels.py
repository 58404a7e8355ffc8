"""LayerNorm over channels as an autograd.Function and as operators.

The formulas are in `normreg.kernels.layer_norm.channels`.
"""

import torch

from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.layer_norm import channels as kernels
from normreg.ops import gradient, operator


class LayerNormChannelsFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        output = kernels.layer_norm_channels_forward(*inputs)
        LayerNormChannelsFunction.save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def save(ctx, inputs, output):
        x, weight, bias, ctx.eps, *_ = inputs
        _, mean, rstd = output
        gradient.save_for_backward(ctx, x, weight, bias, mean, rstd)

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 6
        wanted = ctx.needs_input_grad[:3]
        x, weight, mean, rstd = ctx.saved_tensors
        if gradient.wants_formula(dy):
            if weight is not None:
                weight = weight.view(-1, *(1,) * (x.dim() - 2))
            mean, rstd = gradient.statistics(x, (1,), ctx.eps)
            others = (0, *range(2, x.dim()))
            grads = gradient.normalization_backward(dy, x, weight, mean, rstd, (1,), others, wanted)
        else:
            backward = OPERATOR_BACKWARD if operator.traces(dy) else kernels.layer_norm_channels_backward
            grads = backward(dy, x, weight, mean, rstd, ctx.parameter_dtype, wanted)
        return *grads, None, None, None


def fake_forward(x, weight, bias, eps, out_dtype, save_statistics):
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    if not save_statistics:
        return y, None, None
    positions = x.shape[0] * x.shape[2:].numel()
    mean, rstd = (x.new_empty(positions, dtype=compute_dtype(x.dtype)) for _ in range(2))
    return y, mean, rstd


def fake_backward(dy, x, weight, mean, rstd, parameter_dtype, wanted):
    return operator.fake_gradients(x, x.shape[1:2], parameter_dtype, wanted)


OPERATOR = operator.register(
    "layer_norm_channels(Tensor x, Tensor? weight, Tensor? bias, float eps, ScalarType out_dtype, "
    "bool save_statistics) -> (Tensor y, Tensor mean, Tensor rstd)",
    kernels.layer_norm_channels_forward, fake_forward, LayerNormChannelsFunction,
)  # fmt: skip
OPERATOR_BACKWARD = operator.register(
    "layer_norm_channels_backward(Tensor dy, Tensor x, Tensor? weight, Tensor mean, Tensor rstd, "
    "ScalarType parameter_dtype, bool[3] wanted) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    kernels.layer_norm_channels_backward, fake_backward,
)  # fmt: skip


def layer_norm_channels(x, weight, bias, eps, out_dtype):
    wants_gradient = gradient.wants_gradient(x, weight, bias)
    arguments = (x, weight, bias, eps, out_dtype, wants_gradient)
    run, function = kernels.layer_norm_channels_forward, LayerNormChannelsFunction
    return operator.first_result(run, function, OPERATOR, arguments, wants_gradient)
