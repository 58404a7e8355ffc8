"""GroupNorm. The formulas are in `normreg.kernels.group_norm`."""

import math

from normreg.kernels import group_norm as kernels
from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.memory_format import dense, empty_in_format_of
from normreg.ops import gradient
from normreg.ops.operation import Operation, Operator


def fake(x, groups, out_dtype, save_statistics):
    y = empty_in_format_of(dense(x), out_dtype)
    size = x.shape[0], groups, 3
    return y, x.new_empty(size, dtype=compute_dtype(x.dtype)) if save_statistics else None


def fake_backward(x, parameter_dtype, wanted):
    _, *parameters = gradient.fakes(x, x.shape[1:2], parameter_dtype, [False, *wanted[1:]])
    return empty_in_format_of(dense(x)) if wanted[0] else None, *parameters


def in_groups(x, groups):
    """The shape (N, groups, channels of a group, positions)."""
    return x.shape[0], groups, x.shape[1] // groups, math.prod(x.shape[2:])


def statistics(x, groups, eps):
    """mean and rstd of x in that shape, in differentiable torch operations."""
    return gradient.statistics(x.reshape(in_groups(x, groups)), (2, 3), eps)


def gradients_of(dz, x, weight, mean, rstd, groups, wanted):
    """dx, dweight and dbias of what `statistics` returns."""
    shape = in_groups(x, groups)
    weight = None if weight is None else weight.view(1, *shape[1:3], 1)
    dx, dweight, dbias = gradient.normalization_backward(
        dz.reshape(shape), x.reshape(shape), weight, mean, rstd, (2, 3), (0, 3), wanted
    )
    dx = None if dx is None else dx.view(x.shape)
    dweight, dbias = (None if grad is None else grad.reshape(x.shape[1]) for grad in (dweight, dbias))
    return dx, dweight, dbias


def formula(dy, x, weight, groups, eps, wanted):
    return gradients_of(dy, x, weight, *statistics(x, groups, eps), groups, wanted)


def z_of(x, weight, bias, mean, rstd, groups):
    """x_hat weight + bias of what `statistics` returns, in x's shape."""
    deviation = gradient.deviation_of(x.reshape(in_groups(x, groups)).to(rstd.dtype), mean)
    return affine(deviation * rstd, weight, bias).view(x.shape)


def affine(x_hat, weight, bias):
    shape = 1, *x_hat.shape[1:3], 1
    weight, bias = (None if t is None else t.view(shape) for t in (weight, bias))
    return gradient.affine(x_hat, weight, bias)


def decomposed(x, weight, bias, groups, eps):
    deviation, mean, var = gradient.moments(x.reshape(in_groups(x, groups)), (2, 3))
    z = affine(deviation * (var + eps).rsqrt(), weight, bias).view(x.shape)
    return z, gradient.packed(mean, var, (x.shape[0], groups))


def saved(statistics, eps):
    """mean and rstd, from what was saved of groups."""
    mean, var = gradient.unpacked(statistics, (*statistics.shape[:2], 1, 1))
    return mean, (var + eps).rsqrt()


def decomposed_backward(dy, x, weight, statistics, groups, eps, wanted):
    return gradients_of(dy, x, weight, *saved(statistics, eps), groups, wanted)


DTYPES = {"parameter_dtype": ("weight", "bias", "x")}
normalized = Operation(
    "group_norm",
    kernels.group_norm_forward,
    fake,
    ("y", "statistics"),
    Operator(
        "group_norm_backward",
        kernels.group_norm_backward,
        fake_backward,
        ("dx", "dweight", "dbias"),
        decomposition=decomposed_backward,
    ),
    formula,
    gradients=3,
    returned=2,  # InstanceNorm averages the statistics
    dtypes=DTYPES,
    decomposition=decomposed,
)


def group_norm(x, weight, bias, groups, eps, out_dtype):
    y, _ = normalized(x, weight, bias, groups, eps, out_dtype)
    return y
