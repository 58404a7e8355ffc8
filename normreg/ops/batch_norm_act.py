"""BatchNorm, residual and activation as autograd.Functions and as operators.

The formulas are in `normreg.kernels.batch_norm`.
"""

import torch

from normreg.kernels import batch_norm as kernels
from normreg.kernels.device.channels import bits_like, dense, flags_of
from normreg.ops import batch_norm, gradient, operator
from normreg.ops.activations import DZ


def _training(
    x, weight, bias, residual, act, negative_slope, eps, running_mean, running_var, tracked, momentum, save
):  # fmt: skip
    x = dense(x)
    fused = kernels.fused(x, act, negative_slope, residual, save)
    running = running_mean, running_var, tracked
    result = kernels.batch_norm_forward(x, weight, bias, *running, momentum, eps, save, fused)
    if tracked is not None:
        torch.autograd.graph.increment_version(tracked)  # which the kernel's store does not do
    return *result, fused.bits


def _inference(x, weight, bias, residual, act, negative_slope, eps, running_mean, running_var, save):
    x = dense(x)
    fused = kernels.fused(x, act, negative_slope, residual, save)
    result = kernels.batch_norm_inference(x, weight, bias, running_mean, running_var, eps, save, fused)
    return *result, fused.bits


def _backward(
    dy, x, weight, bias, residual, bits, mean, var,
    act, negative_slope, eps, parameter_dtype, training, wanted,
):  # fmt: skip
    fused = kernels.Fused(act, negative_slope, residual, bits)
    return kernels.batch_norm_backward(
        dy, x, weight, mean, var, eps, parameter_dtype, training, wanted, bias, fused
    )


def _save(ctx, inputs, output):
    """Beside what BatchNorm saves: the bits or, where z is needed again, its other terms."""
    x, weight, bias, residual, ctx.act, ctx.negative_slope, ctx.eps, *_ = inputs
    _, mean, var, bits = output
    terms = (bias, residual) if ctx.act is not None and bits is None else (None, None)
    gradient.save_for_backward(ctx, x, weight, bias, *terms, bits, mean, var)


def _gradients(ctx, dy, training):
    """dx, dweight, dbias and dresidual."""
    if dy is None:
        return None, None, None, None
    *wanted, want_dresidual = ctx.needs_input_grad[:4]
    x, weight, bias, residual, bits, mean, var = ctx.saved_tensors
    if gradient.wants_formula(dy):
        mean, rstd = batch_norm.statistics(x, mean, var, ctx.eps, training)
        dz = dy.to(rstd.dtype)
        if ctx.act is not None:
            z = (x - mean) * rstd if bits is None else flags_of(bits, x).to(dz.dtype)
            if bits is None:
                _, per_channel = batch_norm.over_channels(x)
                z = z if weight is None else z * weight.view(per_channel)
                z = z if bias is None else z + bias.view(per_channel)
                z = z if residual is None else z + residual
            formula = DZ[ctx.act]
            dz = formula(dz, z, ctx.negative_slope)
        gradients = batch_norm.formula(dz, x, weight, mean, rstd, training, wanted)
        return *gradients, dz.to(dy.dtype) if want_dresidual else None
    sizes = ctx.eps, ctx.parameter_dtype, training
    if ctx.act is None:
        gradients = batch_norm.backward(dy, x, weight, mean, var, *sizes, wanted)
        return *gradients, dy if want_dresidual else None
    backward = OPERATOR_BACKWARD if operator.traces(dy) else _backward
    return backward(
        dy, x, weight, bias, residual, bits, mean, var, ctx.act, ctx.negative_slope, *sizes,
        (*wanted, want_dresidual),
    )  # fmt: skip


class BatchNormActFunction(torch.autograd.Function):
    save = staticmethod(_save)

    @staticmethod
    def forward(ctx, *inputs):
        output = _training(*inputs)
        _save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx, dy, *_):
        return *_gradients(ctx, dy, training=True), *[None] * 8


class BatchNormActInferenceFunction(torch.autograd.Function):
    save = staticmethod(_save)

    @staticmethod
    def forward(ctx, *inputs):
        output = _inference(*inputs)
        _save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx, dy, *_):
        return *_gradients(ctx, dy, training=False), *[None] * 6


def fake_bits(x, act, residual, save):
    return bits_like(dense(x)) if save and kernels.keeps_bits(act, residual) else None


def fake_training(
    x, weight, bias, residual, act, negative_slope, eps, running_mean, running_var, tracked, momentum, save
):  # fmt: skip
    running = running_mean, running_var, tracked
    result = batch_norm.fake_training(x, weight, bias, *running, momentum, eps, save)
    return *result, fake_bits(x, act, residual, save)


def fake_inference(x, weight, bias, residual, act, negative_slope, eps, running_mean, running_var, save):
    result = batch_norm.fake_inference(x, weight, bias, running_mean, running_var, eps, save)
    return *result, fake_bits(x, act, residual, save)


def fake_backward(
    dy, x, weight, bias, residual, bits, mean, var,
    act, negative_slope, eps, parameter_dtype, training, wanted,
):  # fmt: skip
    *wanted, want_dresidual = wanted
    result = batch_norm.fake_backward(dy, x, weight, mean, var, eps, parameter_dtype, training, wanted)
    return *result, torch.empty_like(dense(x)) if want_dresidual else None


FORWARD = (
    "Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, str? act, float negative_slope, float eps"
)
OPERATOR = operator.register(
    f"batch_norm_act({FORWARD}, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
    "Tensor(c!)? num_batches_tracked, float? momentum, bool save) "
    "-> (Tensor y, Tensor mean, Tensor var, Tensor bits)",
    _training, fake_training, BatchNormActFunction,
)  # fmt: skip
OPERATOR_INFERENCE = operator.register(
    f"batch_norm_act_inference({FORWARD}, Tensor running_mean, Tensor running_var, bool save) "
    "-> (Tensor y, Tensor mean, Tensor var, Tensor bits)",
    _inference, fake_inference, BatchNormActInferenceFunction,
)  # fmt: skip
OPERATOR_BACKWARD = operator.register(
    "batch_norm_act_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, "
    "Tensor? bits, Tensor mean, Tensor var, str act, float negative_slope, float eps, "
    "ScalarType parameter_dtype, bool training, bool[4] wanted) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dresidual)",
    _backward, fake_backward,
)  # fmt: skip


def batch_norm_act(
    x, weight, bias, residual, act, negative_slope,
    running_mean, running_var, tracked, training, momentum, eps,
):  # fmt: skip
    wants_gradient = gradient.wants_gradient(x, weight, bias, residual)
    arguments = (x, weight, bias, residual, act, negative_slope, eps, running_mean, running_var)
    if training:
        arguments = (*arguments, tracked, momentum, wants_gradient)
        run, function, traced = _training, BatchNormActFunction, OPERATOR
    else:
        arguments = (*arguments, wants_gradient)
        run, function, traced = _inference, BatchNormActInferenceFunction, OPERATOR_INFERENCE
    return operator.first_result(run, function, traced, arguments, wants_gradient)
