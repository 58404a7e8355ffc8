"""`layer_norm` and `rms_norm` with a result in float8_e4m3fn: y and its scale, for inference."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normreg.functional import dispatch
from normreg.functional.output_dtype import rounded_to
from normreg.kernels.dtypes import FLOAT8, compute_dtype
from normreg.kernels.layer_norm.float8 import scale_shape
from normreg.kernels.tiling import hardware
from normreg.kernels.tiling.rows import float8_is_held
from normreg.ops.float8 import layer_norm_float8 as _layer_norm_float8
from normreg.ops.float8 import quantised
from normreg.ops.operation import wants_gradient


def float8_reason(x: Any, normalized_shape: Any, weight: Any, bias: Any, scale: Any, eps: Any) -> str | None:
    """Why no kernel gives the result of a norm over rows in float8."""
    reason = dispatch.rows_reason(x, normalized_shape, (weight, bias), eps) or dispatch.tensor_reason(
        x, (scale,)
    )
    if reason:
        return reason
    if not supported(x.device):
        return "the GPU does not round to float8_e4m3fn: NVIDIA's do from compute capability 8.9 on"
    return (
        None
        if float8_is_held(math.prod(normalized_shape), x.dtype)
        else "a row has more elements than a program holds"
    )


@torch.compiler.assume_constant_result
def supported(device: torch.device) -> bool:
    return hardware.has_float8(device)


layer_norm_reason = dispatch.decision("layer_norm")(float8_reason)
rms_norm_reason = dispatch.decision("rms_norm")(float8_reason)


def norm_in_float8(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    scale: Tensor | None,
    centered: bool,
) -> tuple[Tensor, Tensor]:
    """y8 and the scale, found or as it was given."""
    if not isinstance(input, Tensor):
        raise TypeError(f"expected input to be a tensor, got {input!r}: pass one of (*, *normalized_shape)")
    if scale is not None:
        _check_scale(scale, input, normalized_shape)
    if wants_gradient((input, weight, bias, scale)):
        raise RuntimeError(
            f"expected a call without a gradient, because {FLOAT8} has none, got tensors that require one: "
            f"call it under torch.no_grad(), or pass another out_dtype"
        )
    if eps is None:
        eps = torch.finfo(compute_dtype(input.dtype)).eps
    reason = layer_norm_reason if centered else rms_norm_reason
    if reason(input, normalized_shape, weight, bias, scale, eps):
        return _composed(input, normalized_shape, weight, bias, eps, scale, centered)
    y, found = _layer_norm_float8(input, weight, bias, scale, tuple(normalized_shape), centered, eps)
    return y, found if scale is None else scale


def _composed(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    scale: Tensor | None,
    centered: bool,
) -> tuple[Tensor, Tensor]:
    if centered:
        y = rounded_to(F.layer_norm, torch.float32)(input, normalized_shape, weight, bias, eps)
    else:
        y = rounded_to(F.rms_norm, torch.float32)(input, normalized_shape, weight, eps)
    return quantised(y, scale, normalized_shape)


def _check_scale(scale: Any, input: Any, normalized_shape: Any) -> None:
    if not isinstance(scale, Tensor) or scale.dtype != torch.float32:
        got = scale.dtype if isinstance(scale, Tensor) else repr(scale)
        raise ValueError(f"expected scale to be a tensor of float32, got {got}: pass scale.float()")
    if scale.numel() == 1 or not isinstance(normalized_shape, (tuple, list)):  # of which torch says more
        return
    of_rows = scale_shape(input.shape, normalized_shape)
    if scale.shape != of_rows:
        raise ValueError(
            f"expected scale to have one element, or shape {of_rows}, one for each row, got "
            f"{tuple(scale.shape)}: pass one of these, or None for the scale that each row asks for"
        )
