"""GroupNorm. The formulas are in `normreg.kernels.group_norm`."""

import torch

from normreg.kernels import group_norm as kernels
from normreg.kernels.dtypes import compute_dtype
from normreg.ops import gradient
from normreg.ops.operation import Operation, Operator


def fake(x, groups, out_dtype, save_statistics):
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    size = x.shape[0], groups, 3
    return y, x.new_empty(size, dtype=compute_dtype(x.dtype)) if save_statistics else None


def fake_backward(x, parameter_dtype, wanted):
    return gradient.fakes(x, x.shape[1:2], parameter_dtype, wanted)


def formula(dy, x, weight, groups, eps, wanted):
    """The gradients over x as (N, groups, channels of a group, positions)."""
    shape = (x.shape[0], groups, x.shape[1] // groups, -1)
    in_groups = x.reshape(shape)
    mean, rstd = gradient.statistics(in_groups, (2, 3), eps)
    weight = None if weight is None else weight.view(1, *shape[1:3], 1)
    dx, dweight, dbias = gradient.normalization_backward(
        dy.reshape(shape), in_groups, weight, mean, rstd, (2, 3), (0, 3), wanted
    )
    dx = None if dx is None else dx.view(x.shape)
    dweight, dbias = (None if grad is None else grad.reshape(x.shape[1]) for grad in (dweight, dbias))
    return dx, dweight, dbias


normalized = Operation(
    "group_norm",
    kernels.group_norm_forward,
    fake,
    ("y", "statistics"),
    Operator("group_norm_backward", kernels.group_norm_backward, fake_backward, ("dx", "dweight", "dbias")),
    formula,
    gradients=3,
    returned=2,  # InstanceNorm averages the statistics
    dtypes={"parameter_dtype": ("weight", "bias", "x")},
)


def group_norm(x, weight, bias, groups, eps, out_dtype):
    y, _ = normalized(x, weight, bias, groups, eps, out_dtype)
    return y
