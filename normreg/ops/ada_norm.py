"""Gated sum, norm and modulation. The formulas are in `normreg.kernels.ada_norm`."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from normreg.kernels import ada_norm as kernels
from normreg.kernels.dtypes import compute_dtype
from normreg.ops import gradient, layer_norm
from normreg.ops.operation import Operation, Operator


def run(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    gate: Tensor | None,
    eps: float,
    z_dtype: torch.dtype,
    out_dtype: torch.dtype,
    centered: bool,
    save_z: bool,
    save_statistics: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y, and z, which is kept beside the statistics, and is x itself, so None, without a residual."""
    tensors = x, scale, shift, weight, bias, residual, gate
    save_z = residual is not None and (save_z or save_statistics)
    return kernels.ada_norm_forward(*tensors, eps, z_dtype, out_dtype, centered, save_z, save_statistics)


def fake(x, residual, z_dtype, out_dtype, centered, save_z, save_statistics):
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    z = torch.empty(x.shape, dtype=z_dtype, device=x.device)
    save_z = residual is not None and (save_z or save_statistics)
    rows = x.numel() // x.shape[-1]
    statistics = layer_norm.fake_statistics(z, rows, centered) if save_statistics else None
    return y, z if save_z else None, statistics


def run_backward(
    dy: Tensor,
    dz: Tensor | None,
    z: Tensor,
    x: Tensor | None,
    scale: Tensor,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    gate: Tensor | None,
    statistics: Tensor,
    centered: bool,
    dx_dtype: torch.dtype,
    dresidual_dtype: torch.dtype,
    shift_dtype: torch.dtype,
    parameter_dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    tensors = dy, dz, z, x, scale, shift, weight, bias, gate, statistics
    dtypes = dx_dtype, dresidual_dtype, parameter_dtype
    return kernels.ada_norm_backward(*tensors, centered, dtypes, wanted)


def fake_backward(z, scale, shift, gate, dx_dtype, dresidual_dtype, parameter_dtype, wanted):
    def like(tensor):
        return (None, None) if tensor is None else (tensor.shape, tensor.dtype)

    parameter = z.shape[-1:], parameter_dtype
    results = (z.shape, dx_dtype), like(scale), like(shift), parameter, parameter
    results += (z.shape, dresidual_dtype), like(gate)
    return tuple(
        z.new_empty(shape, dtype=dtype) if want else None for want, (shape, dtype) in zip(wanted, results)
    )


@functools.wraps(run_backward)
def gradients(*values):
    """dshift of rows is dy; dx and dresidual are one tensor where they have to be equal."""
    dy, _, _, _, _, shift, _, _, gate, *_ = values
    *others, dx_dtype, dresidual_dtype, shift_dtype, parameter_dtype, wanted = values
    want_dx, want_dscale, want_dshift, want_dweight, want_dbias, want_dresidual, want_dgate = wanted
    of_rows = want_dshift and shift is None
    one = gate is None and dx_dtype == dresidual_dtype
    wanted = (
        want_dx or (one and want_dresidual),
        want_dscale,
        want_dshift and not of_rows,
        want_dweight,
        want_dbias,
        want_dresidual and not one,
        want_dgate,
    )
    dtypes = dx_dtype, dresidual_dtype, shift_dtype, parameter_dtype
    dx, dscale, dshift, dweight, dbias, dresidual, dgate = backward(*others, *dtypes, wanted)
    if one and want_dresidual:
        dx, dresidual = dx if want_dx else None, dx
    return dx, dscale, dy.to(shift_dtype) if of_rows else dshift, dweight, dbias, dresidual, dgate


def formula(
    dy,
    dz,
    z,
    x,
    scale,
    shift,
    weight,
    bias,
    gate,
    eps,
    centered,
    dx_dtype,
    dresidual_dtype,
    shift_dtype,
    parameter_dtype,
    wanted,
):
    tensors = dy, dz, z, x, scale, shift, weight, bias, gate
    dtypes = dx_dtype, dresidual_dtype, shift_dtype, parameter_dtype

    def statistics_of(rows):
        return gradient.statistics(rows, -1, eps, centered)

    return gradients_of(tensors, statistics_of, dtypes, wanted)


def spreading(z, *modulation):
    """Makes a modulation or a tensor of z's shape: [samples, -1, cols], in the dtype of arithmetic."""
    dtype, cols = compute_dtype(z.dtype), z.shape[-1]
    samples = next((m.numel() // cols for m in modulation if not is_of_rows(m, z)), 1)
    return lambda m: m.to(dtype).reshape(samples, -1, cols)


def decomposed(x, scale, shift, weight, bias, residual, gate, eps, z_dtype, centered):
    spread = spreading(x, shift, scale, gate)
    z = spread(x) if gate is None else spread(x) * spread(gate)
    z = (z if residual is None else z + spread(residual)).to(z_dtype)
    y, mean, rstd = gradient.normalized(z, weight, bias, (-1,), eps, centered)
    y = y * (1 + spread(scale))
    y = (y if shift is None else y + spread(shift)).reshape(x.shape)
    return y, z.reshape(x.shape), gradient.packed(mean, rstd, -1)


@functools.wraps(run_backward)
def decomposed_backward(*values):
    *tensors, statistics, _, dx_dtype, dresidual_dtype, shift_dtype, parameter_dtype, wanted = values
    dtypes = dx_dtype, dresidual_dtype, shift_dtype, parameter_dtype

    def statistics_of(rows):
        return gradient.unpacked(statistics, (*rows.shape[:-1], 1))

    return gradients_of(tensors, statistics_of, dtypes, wanted)


def gradients_of(tensors, statistics_of, dtypes, wanted):
    """The gradients, of mean and rstd as a function of rows."""
    dy, dz, z, x, scale, shift, weight, bias, gate = tensors
    dx_dtype, dresidual_dtype, shift_dtype, parameter_dtype = dtypes
    _, want_dscale, want_dshift, *want_parameters, want_dresidual, want_dgate = wanted
    dims, spread = z.shape[-1:], spreading(z, shift, scale, gate)

    def gathered(product, m):
        return (product if is_of_rows(m, z) else product.sum(1)).reshape(m.shape).to(m.dtype)

    rows = spread(z)
    dscale = dshift = dweight = dbias = dgate = None
    if dy is not None:
        incoming = spread(dy)
        if want_dshift:
            dshift = dy.to(shift_dtype) if shift is None else gathered(incoming, shift)
        mean, rstd = statistics_of(rows)
        if want_dscale:
            x_hat = gradient.deviation_of(rows, mean) * rstd
            dscale = gathered(incoming * gradient.affine(x_hat, weight, bias), scale)
        wanted = True, *want_parameters
        of_norm, dweight, dbias = layer_norm.gradients_of(
            incoming * (1 + spread(scale)), rows, weight, mean, rstd, dims, wanted
        )
        dweight, dbias = (None if grad is None else grad.to(parameter_dtype) for grad in (dweight, dbias))
        dz = of_norm if dz is None else of_norm + spread(dz)
    dz = spread(dz)
    if want_dgate:
        dgate = gathered(dz * spread(x), gate)
    dx = dz if gate is None else dz * spread(gate)
    dx, dresidual = dx.reshape(z.shape).to(dx_dtype), dz.reshape(z.shape).to(dresidual_dtype)
    return dx, dscale, dshift, dweight, dbias, dresidual if want_dresidual else None, dgate


def is_of_rows(m, z):
    return m is None or (m.dim() == z.dim() and m.shape == z.shape)  # tuples compare items before lengths


backward = Operator(
    "ada_norm_backward",
    run_backward,
    fake_backward,
    ("dx", "dscale", "dshift", "dweight", "dbias", "dresidual", "dgate"),
    decomposition=decomposed_backward,
)
ada_norm = Operation(
    "ada_norm",
    run,
    fake,
    ("y", "z", "statistics"),
    gradients,
    formula,
    gradients=7,
    differentiable=2,
    returned=2,
    dtypes={
        "dx_dtype": ("x",),
        "dresidual_dtype": ("residual", "x"),
        "shift_dtype": ("shift", "x"),
        "parameter_dtype": ("weight", "bias", "x"),
    },
    keep={
        "z": lambda z, x: x if z is None else z,
        # which has the shape of its gradient, where that is not dy
        "shift": lambda shift, x: None if is_of_rows(shift, x) else shift,
        "x": lambda x, gate: None if gate is None else x,
    },
    decomposition=decomposed,
)
