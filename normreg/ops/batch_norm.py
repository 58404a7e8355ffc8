"""BatchNorm. The formulas are in `normreg.kernels.batch_norm`."""

import math

import torch
from torch import Tensor

from normreg.kernels import batch_norm as kernels
from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.memory_format import channel_values, dense
from normreg.ops import gradient
from normreg.ops.operation import Operation, Operator
from normreg.ops.untranslated import WITHOUT_UPDATES

DTYPES = {"parameter_dtype": ("weight", "bias", "x")}
RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def run_training(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    eps: float,
    save_statistics: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    running = running_mean, running_var, num_batches_tracked
    result = kernels.batch_norm_forward(x, weight, bias, *running, momentum, eps, save_statistics)
    if num_batches_tracked is not None:  # a kernel's store does not count as a version
        torch.autograd.graph.increment_version(num_batches_tracked)
    return result


def fake_training(x, save_statistics):
    y = torch.empty_like(dense(x))
    if not save_statistics:
        return y, None, None
    mean = channel_values(x)
    return y, mean, torch.empty_like(mean, dtype=compute_dtype(x.dtype))


def fake_inference(x, running_mean, running_var, save_statistics):
    y = torch.empty_like(dense(x))
    if not save_statistics:
        return y, None, None
    return y, torch.empty_like(running_mean), torch.empty_like(running_var)


def fake_backward(x, parameter_dtype, wanted):
    dx = torch.empty_like(dense(x)) if wanted[0] else None
    return dx, *(x.new_empty(x.shape[1], dtype=parameter_dtype) if want else None for want in wanted[1:])


def over_channels(x):
    """The dimensions that one channel's sums are over, and the shape in which its values meet x."""
    return (0, *range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))


def statistics(x, mean, var, eps, training):
    """mean and rstd as differentiable torch operations; those saved are constants, in inference."""
    dims, _ = over_channels(x)
    return gradient.statistics(x, dims, eps) if training else saved(x, mean, var, eps)


def saved(x, mean, var, eps):
    """mean and rstd, from those of each channel that were saved."""
    _, per_channel = over_channels(x)
    dtype = compute_dtype(x.dtype)
    parts = pair(mean, dtype) if mean.dtype == torch.float64 != dtype else [mean.to(dtype)]
    return tuple(t.view(per_channel) for t in parts), (var.to(dtype) + eps).rsqrt().view(per_channel)


def pair(value, dtype):
    """A float64 as the sum of two numbers of the dtype."""
    high = value.to(dtype)
    return [high, (value - high.double()).to(dtype)]


def moved(running, value, factor):
    """What running statistics become, in float64: value is a batch's, factor its weight."""
    return (1 - factor) * running.double() + factor * value.detach()


def z_of(x_hat, weight, bias, residual):
    """The activation's input."""
    _, per_channel = over_channels(x_hat)
    z = x_hat if weight is None else x_hat * weight.view(per_channel)
    z = z if bias is None else z + bias.view(per_channel)
    return z if residual is None else z + residual


def gradients_of(dz, x, weight, mean, rstd, training, wanted):
    """dx, dweight and dbias in differentiable torch operations, of what `statistics` returns."""
    dims, per_channel = over_channels(x)
    weight = None if weight is None else weight.view(per_channel)
    normalized_dims = dims if training else None
    return gradient.normalization_backward(dz, x, weight, mean, rstd, normalized_dims, dims, wanted)


def formula(dy, x, weight, mean, var, eps, training, wanted):
    mean, rstd = statistics(x, mean, var, eps, training)
    return gradients_of(dy, x, weight, mean, rstd, training, wanted)


def normalized(x, running_mean, running_var, num_batches_tracked, momentum, eps):
    """x_hat, and mean and var of each channel; moves the running statistics and counts the batch."""
    dims, _ = over_channels(x)
    deviation, (high, low), var = gradient.moments(x, dims)
    x_hat = deviation * (var + eps).rsqrt()
    mean, var = (high.double() + low.double()).flatten(), var.flatten()
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    if running_mean is not None:
        n = x.shape[0] * math.prod(x.shape[2:])
        factor = 1 / num_batches_tracked.double() if momentum is None else momentum
        running_mean.copy_(moved(running_mean, mean, factor))
        running_var.copy_(moved(running_var, var.double() * n / (n - 1), factor))
    return x_hat, mean, var


def normalized_by(x, mean, var, eps):
    """x_hat of statistics that are given."""
    mean, rstd = saved(x, mean, var, eps)
    return gradient.deviation_of(x.to(rstd.dtype), mean) * rstd


def decomposed_training(x, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps):
    running = running_mean, running_var, num_batches_tracked
    x_hat, mean, var = normalized(x, *running, momentum, eps)
    return z_of(x_hat, weight, bias, None), mean, var


def decomposed_inference(x, weight, bias, running_mean, running_var, eps):
    x_hat = normalized_by(x, running_mean, running_var, eps)
    return z_of(x_hat, weight, bias, None), running_mean.clone(), running_var.clone()


def decomposed_backward(dy, x, weight, mean, var, eps, training, wanted):
    return gradients_of(dy, x, weight, *saved(x, mean, var, eps), training, wanted)


backward = Operator(
    "batch_norm_backward",
    kernels.batch_norm_backward,
    fake_backward,
    ("dx", "dweight", "dbias"),
    decomposition=decomposed_backward,
)
in_training = Operation(
    "batch_norm",
    run_training,
    fake_training,
    ("y", "mean", "var"),
    backward,
    formula,
    gradients=3,
    dtypes=DTYPES,
    constants={"training": True},
    mutates=RUNNING,
    decomposition=decomposed_training,
)
in_inference = Operation(
    "batch_norm_inference",
    kernels.batch_norm_inference,
    fake_inference,
    ("y", "mean", "var"),
    backward,
    formula,
    gradients=3,
    dtypes=DTYPES,
    constants={"training": False},
    decomposition=decomposed_inference,
)


def batch_statistics(x):
    """What inference takes for running statistics in order to normalise by those of the batch."""
    var, mean = torch.var_mean(x.to(compute_dtype(x.dtype)), over_channels(x)[0], correction=0)
    return mean, var


def without_updates(x, weight, bias, running_mean, running_var, tracked, momentum, eps, save_statistics):
    return in_inference.operator(x, weight, bias, *batch_statistics(x), eps, False)


WITHOUT_UPDATES[in_training.operator] = without_updates
BatchNormFunction = in_training.function  # by which `diagnose` knows what is saved


def batch_norm(x, weight, bias, running_mean, running_var, tracked, training, momentum, eps):
    if training:
        return in_training(x, weight, bias, running_mean, running_var, tracked, momentum, eps)
    return in_inference(x, weight, bias, running_mean, running_var, eps)


def in_torch(input, running_mean, running_var, weight, bias, training, momentum, eps, tracked):
    if momentum is None and tracked is not None:
        momentum = 1.0 / (float(tracked) + 1)
    if tracked is not None:
        tracked.add_(1)  # as torch.nn, before what a checkpoint's recomputation may end at
    try:
        return torch.nn.functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    except (RuntimeError, TypeError, ValueError):  # not what ends a recomputation
        if tracked is not None:
            tracked.sub_(1)
        raise
