"""BatchNorm as autograd.Functions and as operators. The formulas are in `normreg.kernels.batch_norm`."""

import torch

from normreg.kernels import batch_norm as kernels
from normreg.kernels.device.channels import channel_values, dense
from normreg.kernels.dtypes import compute_dtype
from normreg.ops import gradient, operator


def _training(x, weight, bias, running_mean, running_var, tracked, momentum, eps, save_statistics):
    running = (running_mean, running_var, tracked)
    result = kernels.batch_norm_forward(x, weight, bias, *running, momentum, eps, save_statistics)
    if tracked is not None:
        torch.autograd.graph.increment_version(tracked)  # which the kernel's store does not do
    return result


def _save(ctx, inputs, output):
    x, weight, bias, *_, ctx.eps, _ = inputs
    _, mean, var = output
    gradient.save_for_backward(ctx, x, weight, bias, mean, var)


def _gradients(ctx, dy, training):
    """dx, dweight and dbias."""
    if dy is None:
        return None, None, None
    wanted = ctx.needs_input_grad[:3]
    x, weight, mean, var = ctx.saved_tensors
    if gradient.wants_formula(dy):
        mean, rstd = statistics(x, mean, var, ctx.eps, training)
        return formula(dy, x, weight, mean, rstd, training, wanted)
    return backward(dy, x, weight, mean, var, ctx.eps, ctx.parameter_dtype, training, wanted)


def backward(dy, *arguments):
    call = OPERATOR_BACKWARD if operator.traces(dy) else kernels.batch_norm_backward
    return call(dy, *arguments)


def over_channels(x):
    """The dimensions that one channel's sums are over, and the shape in which its values meet x."""
    return (0, *range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))


def statistics(x, mean, var, eps, training):
    """mean and rstd as differentiable torch operations; those saved are constants, in inference."""
    dims, per_channel = over_channels(x)
    if training:
        return gradient.statistics(x, dims, eps)
    var = var.to(torch.promote_types(x.dtype, torch.float32))
    return mean.view(per_channel), (var + eps).rsqrt().view(per_channel)


def formula(dy, x, weight, mean, rstd, training, wanted):
    dims, per_channel = over_channels(x)
    weight = None if weight is None else weight.view(per_channel)
    normalized_dims = dims if training else None
    return gradient.normalization_backward(dy, x, weight, mean, rstd, normalized_dims, dims, wanted)


class BatchNormFunction(torch.autograd.Function):
    save = staticmethod(_save)

    @staticmethod
    def forward(ctx, *inputs):
        output = _training(*inputs)
        _save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx, dy, *_):
        return *_gradients(ctx, dy, training=True), None, None, None, None, None, None


class BatchNormInferenceFunction(torch.autograd.Function):
    save = staticmethod(_save)

    @staticmethod
    def forward(ctx, *inputs):
        output = kernels.batch_norm_inference(*inputs)
        _save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx, dy, *_):
        return *_gradients(ctx, dy, training=False), None, None, None, None


def fake_training(x, weight, bias, running_mean, running_var, tracked, momentum, eps, save_statistics):
    y = torch.empty_like(dense(x))
    if not save_statistics:
        return y, None, None
    mean = channel_values(x)
    return y, mean, torch.empty_like(mean, dtype=compute_dtype(x.dtype))


def fake_inference(x, weight, bias, running_mean, running_var, eps, save_statistics):
    y = torch.empty_like(dense(x))
    if not save_statistics:
        return y, None, None
    return y, torch.empty_like(running_mean), torch.empty_like(running_var)


def fake_backward(dy, x, weight, mean, var, eps, parameter_dtype, training, wanted):
    dx = torch.empty_like(dense(x)) if wanted[0] else None
    return dx, *(x.new_empty(x.shape[1], dtype=parameter_dtype) if want else None for want in wanted[1:])


OPERATOR = operator.register(
    "batch_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
    "Tensor(c!)? num_batches_tracked, float? momentum, float eps, bool save_statistics) "
    "-> (Tensor y, Tensor mean, Tensor var)",
    _training, fake_training, BatchNormFunction,
)  # fmt: skip
OPERATOR_INFERENCE = operator.register(
    "batch_norm_inference(Tensor x, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, "
    "float eps, bool save_statistics) -> (Tensor y, Tensor mean, Tensor var)",
    kernels.batch_norm_inference, fake_inference, BatchNormInferenceFunction,
)  # fmt: skip
OPERATOR_BACKWARD = operator.register(
    "batch_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor mean, Tensor var, "
    "float eps, ScalarType parameter_dtype, bool training, bool[3] wanted) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias)",
    kernels.batch_norm_backward, fake_backward,
)  # fmt: skip


def batch_norm(x, weight, bias, running_mean, running_var, tracked, training, momentum, eps):
    wants_gradient = gradient.wants_gradient(x, weight, bias)
    if training:
        arguments = (x, weight, bias, running_mean, running_var, tracked, momentum, eps, wants_gradient)
        run, function, traced = _training, BatchNormFunction, OPERATOR
    else:
        arguments = (x, weight, bias, running_mean, running_var, eps, wants_gradient)
        run, function, traced = kernels.batch_norm_inference, BatchNormInferenceFunction, OPERATOR_INFERENCE
    return operator.first_result(run, function, traced, arguments, wants_gradient)


def in_torch(input, running_mean, running_var, weight, bias, training, momentum, eps, tracked):
    if momentum is None and tracked is not None:
        momentum = 1.0 / (float(tracked) + 1)
    y = torch.nn.functional.batch_norm(
        input, running_mean, running_var, weight, bias, training, momentum, eps
    )
    if tracked is not None:
        tracked.add_(1)
    return y
