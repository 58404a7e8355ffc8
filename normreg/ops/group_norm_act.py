"""GroupNorm and activation. The formulas are in `normreg.kernels.group_norm`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from normreg.kernels import group_norm as kernels
from normreg.ops import group_norm
from normreg.ops.activations import DZ, activation_in_torch
from normreg.ops.operation import Operation, Operator


def run(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    act: str,
    negative_slope: float,
    groups: int,
    eps: float,
    out_dtype: torch.dtype,
    save_statistics: bool,
) -> tuple[Tensor, Tensor | None]:
    options = groups, eps, out_dtype, save_statistics, act, negative_slope
    return kernels.group_norm_forward(x, weight, bias, *options)


def run_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    act: str,
    negative_slope: float,
    groups: int,
    eps: float,
    parameter_dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    options = groups, eps, parameter_dtype, wanted, bias, act, negative_slope
    return kernels.group_norm_backward(dy, x, weight, statistics, *options)


def formula(dy, x, weight, bias, act, negative_slope, groups, eps, wanted):
    statistics = group_norm.statistics(x, groups, eps)
    return gradients_of(dy, x, weight, bias, act, negative_slope, groups, *statistics, wanted)


def gradients_of(dy, x, weight, bias, act, negative_slope, groups, mean, rstd, wanted):
    """dx, dweight and dbias, of statistics that are given."""
    z, derivative = group_norm.z_of(x, weight, bias, mean, rstd, groups), DZ[act]
    dz = derivative(dy.to(z.dtype), z, negative_slope)
    return group_norm.gradients_of(dz, x, weight, mean, rstd, groups, wanted)


def decomposed(x, weight, bias, act, negative_slope, groups, eps):
    z, statistics = group_norm.decomposed(x, weight, bias, groups, eps)
    return activation_in_torch(z, act, negative_slope), statistics


def decomposed_backward(dy, x, weight, bias, statistics, act, negative_slope, groups, eps, wanted):
    given = group_norm.saved(statistics, eps)
    return gradients_of(dy, x, weight, bias, act, negative_slope, groups, *given, wanted)


recorded = Operation(
    "group_norm_act",
    run,
    group_norm.fake,
    ("y", "statistics"),
    Operator(
        "group_norm_act_backward",
        run_backward,
        group_norm.fake_backward,
        ("dx", "dweight", "dbias"),
        decomposition=decomposed_backward,
    ),
    formula,
    gradients=3,
    dtypes=group_norm.DTYPES,
    decomposition=decomposed,
)


def group_norm_act(x, weight, bias, act, negative_slope, groups, eps, out_dtype):
    if act is None:
        return group_norm.group_norm(x, weight, bias, groups, eps, out_dtype)
    return recorded(x, weight, bias, act, negative_slope, groups, eps, out_dtype)
