"""Dropout, sum and normalisation. The formulas are in `normreg.kernels.dropout.add_norm`."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from normreg.kernels.dropout import add_norm as kernels
from normreg.kernels.dropout.drop import Drop
from normreg.ops import dropout_add, gradient, layer_norm
from normreg.ops.operation import Operation, Operator, Seed, wants_formula


def run(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    layer_scale: Tensor | None,
    row_scale: Tensor | None,
    seed: Seed | None,
    p: float,
    bits: int,
    normalized_shape: Sequence[int],
    eps: float,
    z_dtype: torch.dtype,
    out_dtype: torch.dtype,
    centered: bool,
    save_z: bool,
    save_statistics: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y, and z, which is kept beside the statistics, and so is to be among the results."""
    tensors = x, residual, weight, bias, layer_scale, row_scale
    dtypes, save_z = (z_dtype, out_dtype), save_z or save_statistics
    return kernels.dropout_add_norm_forward(
        *tensors, seed, Drop(p, bits), normalized_shape, eps, *dtypes, centered, save_z, save_statistics
    )


def run_backward(
    dy: Tensor,
    dz: Tensor | None,
    z: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    layer_scale: Tensor | None,
    row_scale: Tensor | None,
    statistics: Tensor,
    seed: Seed | None,
    p: float,
    bits: int,
    normalized_shape: Sequence[int],
    centered: bool,
    dx_dtype: torch.dtype,
    dresidual_dtype: torch.dtype,
    parameter_dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    tensors = dy, dz, z, x, weight, layer_scale, row_scale, statistics
    dtypes = dx_dtype, dresidual_dtype, parameter_dtype
    return kernels.dropout_add_norm_backward(
        *tensors, seed, Drop(p, bits), normalized_shape, centered, dtypes, wanted
    )


def fake(x, normalized_shape, z_dtype, out_dtype, centered, save_z, save_statistics):
    y = x.new_empty(x.shape, dtype=out_dtype)
    z = x.new_empty(x.shape, dtype=z_dtype) if save_z or save_statistics else None
    rows = math.prod(x.shape[: x.dim() - len(normalized_shape)])
    return y, z, layer_norm.fake_statistics(z, rows, centered) if save_statistics else None


def fake_backward(z, layer_scale, normalized_shape, dx_dtype, dresidual_dtype, parameter_dtype, wanted):
    scale_dtype = None if layer_scale is None else layer_scale.dtype
    dtypes = dx_dtype, dresidual_dtype, parameter_dtype, parameter_dtype, scale_dtype
    shapes = z.shape, z.shape, *[normalized_shape] * 3
    return tuple(
        z.new_empty(shape, dtype=dtype) if want else None
        for want, shape, dtype in zip(wanted, shapes, dtypes)
    )


@functools.wraps(run_backward)
def gradients(*values):
    """dx and dresidual are one tensor where they have to be equal."""
    *others, (want_dx, want_dresidual, *wanted) = values
    *_, layer_scale, row_scale, _, _, _, bits, _, _, dx_dtype, dresidual_dtype, _ = others
    if bits or layer_scale is not None or row_scale is not None or dx_dtype != dresidual_dtype:
        return backward(*values)
    _, dresidual, *found = backward(*others, (False, want_dx or want_dresidual, *wanted))
    return dresidual if want_dx else None, dresidual if want_dresidual else None, *found


def formula(
    dy,
    dz,
    z,
    x,
    weight,
    layer_scale,
    row_scale,
    seed,
    p,
    bits,
    normalized_shape,
    eps,
    centered,
    dx_dtype,
    dresidual_dtype,
    parameter_dtype,
    wanted,
):
    want_dx, want_dresidual, *want_parameters, want_dlayer_scale = wanted
    dweight = dbias = None
    if dy is not None:
        mean, rstd = gradient.statistics(z, layer_norm.row_dims(normalized_shape), eps, centered)
        dz, dweight, dbias = through_norm(dy, dz, z, weight, mean, rstd, normalized_shape, want_parameters)
        dweight, dbias = (None if grad is None else grad.to(parameter_dtype) for grad in (dweight, dbias))
    rule, cols = (p, bits, False, True), math.prod(normalized_shape)
    wanted = want_dx, want_dlayer_scale
    dx, dlayer_scale = dropout_add.gradients_of_branch(
        dz, x, layer_scale, row_scale, seed, rule, cols, dx_dtype, wanted, wants_formula(dz)
    )
    return dx, dz.to(dresidual_dtype) if want_dresidual else None, dweight, dbias, dlayer_scale


def through_norm(dy, dz, z, weight, mean, rstd, normalized_shape, want_parameters):
    """dz, dweight and dbias, of statistics that are given."""
    wanted = True, *want_parameters
    of_norm, *of_parameters = layer_norm.gradients_of(dy, z, weight, mean, rstd, normalized_shape, wanted)
    return of_norm if dz is None else of_norm + dz, *of_parameters


def decomposed(
    x,
    residual,
    weight,
    bias,
    layer_scale,
    row_scale,
    seed,
    p,
    bits,
    normalized_shape,
    eps,
    z_dtype,
    centered,
):
    rule, cols = (p, bits, False, True), math.prod(normalized_shape)
    z = dropout_add.decomposed(x, residual, layer_scale, row_scale, seed, *rule, cols, z_dtype).to(z_dtype)
    y, statistics = layer_norm.decomposed(z, weight, bias, normalized_shape, eps, centered)
    return y, z, statistics


def decomposed_backward(
    dy,
    dz,
    z,
    x,
    weight,
    layer_scale,
    row_scale,
    statistics,
    seed,
    p,
    bits,
    normalized_shape,
    wanted,
):
    _, _, *want_parameters, want_dlayer_scale = wanted
    z = z.to(statistics.dtype)
    mean, rstd = layer_norm.saved(statistics, z, normalized_shape)
    dz, *of_parameters = through_norm(dy, dz, z, weight, mean, rstd, normalized_shape, want_parameters)
    scales = layer_scale, row_scale, seed, Drop(p, bits), math.prod(normalized_shape)
    dx, dlayer_scale = dropout_add.branch_backward(dz, x if want_dlayer_scale else None, *scales)
    return dx, dz, *of_parameters, dlayer_scale


backward = Operator(
    "dropout_add_norm_backward",
    run_backward,
    fake_backward,
    ("dx", "dresidual", "dweight", "dbias", "dlayer_scale"),
    decomposition=decomposed_backward,
)
recorded = Operation(
    "dropout_add_norm",
    run,
    fake,
    ("y", "z", "statistics"),
    gradients,
    formula,
    gradients=5,
    differentiable=2,
    returned=2,
    dtypes={
        "dx_dtype": ("x",),
        "dresidual_dtype": ("residual", "x"),
        "parameter_dtype": ("weight", "bias", "x"),
    },
    keep={"x": lambda x, layer_scale: None if layer_scale is None else x},
    decomposition=decomposed,
)


def dropout_add_norm(
    x,
    residual,
    weight,
    bias,
    layer_scale,
    row_scale,
    rule,
    generator,
    normalized_shape,
    eps,
    z_dtype,
    out_dtype,
    centered,
    prenorm,
):
    """y, and z, None where it is neither wanted nor kept."""
    seed = dropout_add.draw(x, rule.bits, generator)
    tensors = x, residual, weight, bias, layer_scale, row_scale, seed
    return recorded(*tensors, rule.p, rule.bits, normalized_shape, eps, z_dtype, out_dtype, centered, prenorm)
