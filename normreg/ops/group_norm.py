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


DTYPES = {"parameter_dtype": ("weight", "bias", "x")}
normalized = Operation(
    "group_norm",
    kernels.group_norm_forward,
    fake,
    ("y", "statistics"),
    Operator("group_norm_backward", kernels.group_norm_backward, fake_backward, ("dx", "dweight", "dbias")),
    formula,
    gradients=3,
    returned=2,  # InstanceNorm averages the statistics
    dtypes=DTYPES,
)


def group_norm(x, weight, bias, groups, eps, out_dtype):
    y, _ = normalized(x, weight, bias, groups, eps, out_dtype)
    return y
