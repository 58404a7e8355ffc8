"""LayerNorm and RMSNorm in float8_e4m3fn. The formulas are in `normreg.kernels.layer_norm.float8`."""

import torch

from normreg.kernels.dtypes import FLOAT8
from normreg.kernels.layer_norm import float8 as kernels
from normreg.ops import gradient, layer_norm
from normreg.ops.operation import Operator


def fake(x, scale, normalized_shape):
    y = torch.empty(x.shape, dtype=FLOAT8, device=x.device)
    if scale is not None:
        return y, None
    return y, x.new_empty(kernels.scale_shape(x.shape, normalized_shape), dtype=torch.float32)


def quantised(y, scale, normalized_shape):
    """y of float32 in float8, and the scale, found where there is none."""
    if scale is None:
        dims = layer_norm.row_dims(normalized_shape)
        magnitude = torch.where(y.isnan(), 0.0, y.abs())
        empty = 0 in normalized_shape
        shape = kernels.scale_shape(y.shape, normalized_shape)
        most = y.new_zeros(shape) if empty else magnitude.amax(dims, True)
        scale = (most / kernels.LARGEST).clamp_min(kernels.LEAST_SCALE)
    y = (y * scale.reciprocal()).clamp(-kernels.LARGEST, kernels.LARGEST)
    return y.to(FLOAT8, memory_format=torch.contiguous_format), scale


def decomposed(x, weight, bias, scale, normalized_shape, centered, eps):
    dims = layer_norm.row_dims(normalized_shape)
    y, *_ = gradient.normalized(x, weight, bias, dims, eps, centered)
    return quantised(y.float(), scale, normalized_shape)


layer_norm_float8 = Operator(
    "layer_norm_float8", kernels.layer_norm_float8, fake, ("y", "found"), decomposition=decomposed
)
