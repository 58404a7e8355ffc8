"""BatchNorm over all ranks of a process group, as an autograd.Function and as operators.

The formulas are in `normreg.kernels.batch_norm.synchronized`. Forward and backward each have one collective.
"""

import torch

from normreg.kernels import batch_norm as batch_norm_kernels
from normreg.kernels.batch_norm import synchronized as kernels
from normreg.kernels.device.channels import channel_values, dense, flags_of
from normreg.kernels.dtypes import compute_dtype
from normreg.ops import batch_norm, collectives, gradient, operator
from normreg.ops import sync_batch_norm_torch as in_torch
from normreg.ops.activations import DZ
from normreg.ops.batch_norm_act import fake_bits
from normreg.ops.collectives import AllReduceFunction


def _forward(
    x, weight, bias, residual, act, negative_slope, eps, group, ranks, by_kernels,
    running_mean, running_var, tracked, momentum, save,
):  # fmt: skip
    steps = kernels if by_kernels else in_torch
    x = dense(x)
    gathered = collectives.all_gather(steps.pack(x, tracked), group, ranks)
    fused = batch_norm_kernels.fused(x, act, negative_slope, residual, save and by_kernels)
    running = running_mean, running_var, tracked
    result = steps.normalize(x, gathered, weight, bias, *running, momentum, eps, fused)
    if tracked is not None and by_kernels:
        torch.autograd.graph.increment_version(tracked)  # which the kernel's store does not do
    return *result, fused.bits


def _backward(
    dy, x, weight, bias, residual, bits, mean, var, count,
    act, negative_slope, eps, group, by_kernels, parameter_dtype, wanted,
):  # fmt: skip
    steps = kernels if by_kernels else in_torch
    fused = batch_norm_kernels.Fused(act, negative_slope, residual, bits)
    statistics = mean, var
    sums, dweight, dbias, dresidual = steps.backward_pack(
        dy, x, weight, bias, *statistics, count, eps, parameter_dtype, wanted, fused
    )
    dx = None
    if sums is not None:
        sums = collectives.all_reduce(sums, group)
        dx = steps.backward(dy, x, weight, bias, *statistics, sums, dresidual, eps, fused)
    return dx, dweight, dbias, dresidual


def _formula(dy, x, weight, bias, residual, bits, count, act, negative_slope, eps, group, wanted):
    """The gradients as differentiable torch operations, with two collectives more."""
    dims, per_channel = batch_norm.over_channels(x)
    dtype = torch.promote_types(x.dtype, torch.float32)

    def average(t):
        return AllReduceFunction.apply(t.sum(dims, keepdim=True), group) / count.to(dtype)

    want_dx, want_dweight, want_dbias, want_dresidual = wanted
    deviation = x.to(dtype) - average(x.to(dtype))
    y = deviation * (average(deviation.square()) + eps).rsqrt()
    y = y if weight is None else y * weight.view(per_channel)
    dz = dy.to(dtype)
    if act is not None:
        z = flags_of(bits, x).to(dtype) if bits is not None else y
        if bits is None:
            z = z if bias is None else z + bias.view(per_channel)
            z = z if residual is None else z + residual
        derivative = DZ[act]
        dz = derivative(dz, z, negative_slope)
    sources = [t for t, want in ((x, want_dx), (weight, want_dweight)) if want]
    found = iter(torch.autograd.grad(y, sources, dz, create_graph=True) if sources else ())
    dx, dweight = (next(found) if want else None for want in (want_dx, want_dweight))
    return dx, dweight, dz.sum(dims) if want_dbias else None, dz.to(dy.dtype) if want_dresidual else None


class SyncBatchNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        output = _forward(*inputs)
        SyncBatchNormFunction.save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def save(ctx, inputs, output):
        x, weight, bias, residual, *ctx.options = inputs[:10]
        _, mean, var, count, bits = output
        act, *_ = ctx.options
        terms = (bias, residual) if act is not None and bits is None else (None, None)
        gradient.save_for_backward(ctx, x, weight, bias, *terms, bits, mean, var, count)

    @staticmethod
    def backward(ctx, dy, *_):
        none = (None,) * 11
        if dy is None:
            return None, None, None, None, *none
        if gradient.is_batched(dy):
            raise RuntimeError(
                "expected one incoming gradient, got a batch of them (is_grads_batched=True or torch.func): "
                "ranks would exchange sums for each; call backward once for each of them"
            )
        wanted = ctx.needs_input_grad[:4]
        x, weight, bias, residual, bits, mean, var, count = ctx.saved_tensors
        act, negative_slope, eps, group, _, by_kernels = ctx.options
        act_and_eps = act, negative_slope, eps
        if torch.is_grad_enabled():
            return *_formula(dy, x, weight, bias, residual, bits, count, *act_and_eps, group, wanted), *none
        call = OPERATOR_BACKWARD if operator.traces(dy) else _backward
        *gradients, dresidual = call(
            dy, x, weight, bias, residual, bits, mean, var, count, *act_and_eps, group, by_kernels,
            ctx.parameter_dtype, (*wanted[:3], wanted[3] and act is not None),
        )  # fmt: skip
        return *gradients, dy if wanted[3] and act is None else dresidual, *none


def fake_forward(
    x, weight, bias, residual, act, negative_slope, eps, group, ranks, by_kernels,
    running_mean, running_var, tracked, momentum, save,
):  # fmt: skip
    mean, count = channel_values(x), x.new_empty(1, dtype=torch.float64)
    statistics = mean, torch.empty_like(mean, dtype=compute_dtype(x.dtype)), count
    return torch.empty_like(dense(x)), *statistics, fake_bits(x, act, residual, save and by_kernels)


def fake_backward(
    dy, x, weight, bias, residual, bits, mean, var, count,
    act, negative_slope, eps, group, by_kernels, parameter_dtype, wanted,
):  # fmt: skip
    *wanted, want_dresidual = wanted
    result = batch_norm.fake_backward(dy, x, weight, mean, var, eps, parameter_dtype, True, wanted)
    return *result, torch.empty_like(dense(x)) if want_dresidual else None


OPERATOR = operator.register(
    "sync_batch_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, str? act, "
    "float negative_slope, float eps, str group, int ranks, bool by_kernels, "
    "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, float? momentum, "
    "bool save) -> (Tensor y, Tensor mean, Tensor var, Tensor count, Tensor bits)",
    _forward, fake_forward, SyncBatchNormFunction, everywhere=True,
)  # fmt: skip
OPERATOR_BACKWARD = operator.register(
    "sync_batch_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, "
    "Tensor? bits, Tensor mean, Tensor var, Tensor count, str? act, float negative_slope, float eps, "
    "str group, bool by_kernels, ScalarType parameter_dtype, bool[4] wanted) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dresidual)",
    _backward, fake_backward, everywhere=True,
)  # fmt: skip


def sync_batch_norm(
    x, weight, bias, residual, act, negative_slope, eps, group, ranks, by_kernels,
    running_mean, running_var, tracked, momentum,
):  # fmt: skip
    """group: the name of the process group, of `ranks` ranks; by_kernels: whether these take the tensors."""
    wants_gradient = gradient.wants_gradient(x, weight, bias, residual)
    arguments = (
        x, weight, bias, residual, act, negative_slope, eps, group, ranks, by_kernels,
        running_mean, running_var, tracked, momentum, wants_gradient,
    )  # fmt: skip
    return operator.first_result(_forward, SyncBatchNormFunction, OPERATOR, arguments, wants_gradient)
