"""BatchNorm, residual and activation. The formulas are in `normreg.kernels.batch_norm`."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from normreg.kernels import batch_norm as kernels
from normreg.kernels.memory_format import bits_like, bits_of, dense, flags_of
from normreg.ops import batch_norm, gradient
from normreg.ops.activations import DZ, activation_in_torch, is_steep
from normreg.ops.operation import Operation, Operator
from normreg.ops.untranslated import WITHOUT_UPDATES


def run_training(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str | None,
    negative_slope: float,
    eps: float,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    x = dense(x)
    fused = kernels.fused(x, act, negative_slope, residual, save)
    running = running_mean, running_var, num_batches_tracked
    y, mean, var = kernels.batch_norm_forward(x, weight, bias, *running, momentum, eps, save, fused)
    if num_batches_tracked is not None:  # a kernel's store does not count as a version
        torch.autograd.graph.increment_version(num_batches_tracked)
    return y, mean, var, fused.bits


def run_inference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str | None,
    negative_slope: float,
    eps: float,
    running_mean: Tensor,
    running_var: Tensor,
    save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    x = dense(x)
    fused = kernels.fused(x, act, negative_slope, residual, save)
    result = kernels.batch_norm_inference(x, weight, bias, running_mean, running_var, eps, save, fused)
    return *result, fused.bits


def run_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    bits: Tensor | None,
    mean: Tensor,
    var: Tensor,
    act: str,
    negative_slope: float,
    eps: float,
    parameter_dtype: torch.dtype,
    training: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    fused = kernels.Fused(act, negative_slope, residual, bits)
    return kernels.batch_norm_backward(
        dy, x, weight, mean, var, eps, parameter_dtype, training, wanted, bias, fused
    )


def fake_bits(x, act, residual, save):
    return bits_like(dense(x)) if save and kernels.keeps_bits(act, residual) else None


def fake_training(x, residual, act, save):
    return *batch_norm.fake_training(x, save), fake_bits(x, act, residual, save)


def fake_inference(x, residual, act, running_mean, running_var, save):
    result = batch_norm.fake_inference(x, running_mean, running_var, save)
    return *result, fake_bits(x, act, residual, save)


def fake_backward(x, parameter_dtype, wanted):
    *wanted, want_dresidual = wanted
    result = batch_norm.fake_backward(x, parameter_dtype, wanted)
    return *result, torch.empty_like(dense(x)) if want_dresidual else None


@functools.wraps(run_backward)
def gradients(*values):
    dy, x, weight, _, _, _, mean, var, act, _, *numbers, wanted = values
    if act is not None:
        return backward(*values)
    *wanted, want_dresidual = wanted
    return *batch_norm.backward(dy, x, weight, mean, var, *numbers, wanted), dy if want_dresidual else None


def formula(dy, x, weight, bias, residual, bits, mean, var, act, negative_slope, eps, training, wanted):
    mean, rstd = batch_norm.statistics(x, mean, var, eps, training)
    *found, dz = gradients_of(
        dy, x, weight, bias, residual, bits, mean, rstd, act, negative_slope, training, wanted
    )
    return *found, None if dz is None else dz.to(dy.dtype)


def gradients_of(dy, x, weight, bias, residual, bits, mean, rstd, act, negative_slope, training, wanted):
    """dx, dweight, dbias and dz, of statistics that are given."""
    *wanted, want_dz = wanted
    dz = dy.to(rstd.dtype)
    if act is not None:
        if bits is None:
            x_hat = gradient.deviation_of(x.to(rstd.dtype), mean) * rstd
            z = batch_norm.z_of(x_hat, weight, bias, residual)
        else:
            z = flags_of(bits, x).to(dz.dtype)
        derivative = DZ[act]
        dz = derivative(dz, z, negative_slope)
    return *batch_norm.gradients_of(dz, x, weight, mean, rstd, training, wanted), dz if want_dz else None


def activated(x_hat, weight, bias, residual, act, negative_slope):
    """y, and the bits that stand for the activation's input."""
    z = batch_norm.z_of(x_hat, weight, bias, residual)
    bits = bits_of(is_steep(z, act), x_hat) if kernels.keeps_bits(act, residual) else None
    return activation_in_torch(z, act, negative_slope), bits


def decomposed_training(
    x,
    weight,
    bias,
    residual,
    act,
    negative_slope,
    eps,
    running_mean,
    running_var,
    num_batches_tracked,
    momentum,
):
    running = running_mean, running_var, num_batches_tracked
    x_hat, mean, var = batch_norm.normalized(dense(x), *running, momentum, eps)
    y, bits = activated(x_hat, weight, bias, residual, act, negative_slope)
    return y, mean, var, bits


def decomposed_inference(x, weight, bias, residual, act, negative_slope, eps, running_mean, running_var):
    x_hat = batch_norm.normalized_by(dense(x), running_mean, running_var, eps)
    y, bits = activated(x_hat, weight, bias, residual, act, negative_slope)
    return y, running_mean.clone(), running_var.clone(), bits


def decomposed_backward(
    dy, x, weight, bias, residual, bits, mean, var, act, negative_slope, eps, training, wanted
):
    mean, rstd = batch_norm.saved(x, mean, var, eps)
    return gradients_of(
        dy, x, weight, bias, residual, bits, mean, rstd, act, negative_slope, training, wanted
    )


# the activation's input is computed again from its terms, unless bits stand for it
KEEP = {
    "bias": lambda bias, act, bits: bias if act is not None and bits is None else None,
    "residual": lambda residual, act, bits: residual if act is not None and bits is None else None,
}
RESULTS = ("y", "mean", "var", "bits")
backward = Operator(
    "batch_norm_act_backward",
    run_backward,
    fake_backward,
    ("dx", "dweight", "dbias", "dresidual"),
    decomposition=decomposed_backward,
)
in_training = Operation(
    "batch_norm_act",
    run_training,
    fake_training,
    RESULTS,
    gradients,
    formula,
    gradients=4,
    dtypes=batch_norm.DTYPES,
    constants={"training": True},
    keep=KEEP,
    mutates=batch_norm.RUNNING,
    decomposition=decomposed_training,
)
in_inference = Operation(
    "batch_norm_act_inference",
    run_inference,
    fake_inference,
    RESULTS,
    gradients,
    formula,
    gradients=4,
    dtypes=batch_norm.DTYPES,
    constants={"training": False},
    keep=KEEP,
    decomposition=decomposed_inference,
)


def without_updates(x, *values):
    parameters = values[:6]  # up to eps
    return in_inference.operator(x, *parameters, *batch_norm.batch_statistics(x), False)


WITHOUT_UPDATES[in_training.operator] = without_updates


def batch_norm_act(
    x,
    weight,
    bias,
    residual,
    act,
    negative_slope,
    running_mean,
    running_var,
    tracked,
    training,
    momentum,
    eps,
):
    inputs = x, weight, bias, residual, act, negative_slope, eps, running_mean, running_var
    return in_training(*inputs, tracked, momentum) if training else in_inference(*inputs)
