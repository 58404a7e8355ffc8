"""LayerNorm. The formulas are in `normreg.kernels.layer_norm`."""

import math

import torch

from normreg.kernels import layer_norm as kernels
from normreg.kernels.dtypes import compute_dtype
from normreg.ops import gradient
from normreg.ops.operation import Operation, Operator


def fake(x, normalized_shape, out_dtype, save_statistics, centered=True):
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    rows = math.prod(x.shape[: x.dim() - len(normalized_shape)])
    return y, fake_statistics(x, rows, centered) if save_statistics else None


def fake_statistics(x, rows, centered):
    return x.new_empty((rows, kernels.statistics_of(centered)), dtype=compute_dtype(x.dtype))


def fake_backward(x, normalized_shape, parameter_dtype, wanted):
    return gradient.fakes(x, normalized_shape, parameter_dtype, wanted)


def row_dims(normalized_shape):
    return tuple(range(-len(normalized_shape), 0))


def gradients_of(dy, x, weight, mean, rstd, normalized_shape, wanted):
    """dx, dweight and dbias of rows whose statistics are given."""
    dims, leading = row_dims(normalized_shape), tuple(range(x.dim() - len(normalized_shape)))
    return gradient.normalization_backward(dy, x, weight, mean, rstd, dims, leading, wanted)


def formula(dy, x, weight, normalized_shape, eps, wanted, centered=True):
    mean, rstd = gradient.statistics(x, row_dims(normalized_shape), eps, centered)
    return gradients_of(dy, x, weight, mean, rstd, normalized_shape, wanted)


def decomposed(x, weight, bias, normalized_shape, eps, centered=True):
    y, mean, rstd = gradient.normalized(x, weight, bias, row_dims(normalized_shape), eps, centered)
    return y, gradient.packed(mean, rstd, -1)


def saved(statistics, x, normalized_shape):
    """mean and rstd of rows of x, from what was saved of them."""
    dims = len(normalized_shape)
    return gradient.unpacked(statistics, (*x.shape[: x.dim() - dims], *[1] * dims))


def decomposed_backward(dy, x, weight, statistics, normalized_shape, wanted):
    mean, rstd = saved(statistics, x, normalized_shape)
    return gradients_of(dy, x, weight, mean, rstd, normalized_shape, wanted)


layer_norm_backward = Operator(
    "layer_norm_backward",
    kernels.layer_norm_backward,
    fake_backward,
    ("dx", "dweight", "dbias"),
    decomposition=decomposed_backward,
)
layer_norm = Operation(
    "layer_norm",
    kernels.layer_norm_forward,
    fake,
    ("y", "statistics"),
    layer_norm_backward,
    formula,
    gradients=3,
    dtypes={"parameter_dtype": ("weight", "bias", "x")},
    decomposition=decomposed,
)
