"""`layer_norm_channels` and `rms_norm_channels`, over the channels of each position."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normreg.functional import dispatch
from normreg.functional.norms import layer_norm, rms_norm
from normreg.functional.output_dtype import check_out_dtype
from normreg.kernels.dtypes import compute_dtype
from normreg.ops.layer_norm import layer_norm as _layer_norm
from normreg.ops.layer_norm_channels import layer_norm_channels as _layer_norm_channels
from normreg.ops.operation import is_plain
from normreg.ops.rms_norm import rms_norm as _rms_norm
from normreg.ops.rms_norm_channels import rms_norm_channels as _rms_norm_channels


def positions_reason(x: Any, parameters: Sequence[Any], eps: Any) -> str | None:
    """Why no kernel normalises x over the channels of each position."""
    reason = dispatch.tensor_reason(x, parameters) or dispatch.dtype_reason(x, parameters)
    return reason or dispatch.number_reason(eps=eps) or dispatch.vectors_reason(x, parameters)


@dispatch.decision("layer_norm_channels")
def layer_norm_channels_reason(x: Any, weight: Any, bias: Any, eps: Any) -> str | None:
    return positions_reason(x, (weight, bias), eps)


@dispatch.decision("rms_norm_channels")
def rms_norm_channels_reason(x: Any, weight: Any, eps: Any) -> str | None:
    return positions_reason(x, (weight,), 0.0 if eps is None else eps)


def layer_norm_channels(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Layer normalisation over the channels of each position of an (N, C, *) input, as timm's LayerNorm2d.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and biased variance over C.

    Args:
        input: (N, C, *), float16, bfloat16, float32 or float64. The kernel reads contiguous and channels-last
            input as it is, and a copy of input with other strides.
        weight, bias: (C,) or None; of input's dtype, or float32 beside 16 bits.
        eps: added to the variance.
        out_dtype: that of `layer_norm`.

    Returns a tensor of input's shape, channels-last where input is, else contiguous. Where the kernel does
    not apply (`normreg.functional.dispatch`), and for input that torch rejects, this is the equivalent, whose
    result is channels-last.

    Equivalent::

        y = torch.nn.functional.layer_norm(x.movedim(1, -1), (C,), weight, bias, eps).movedim(-1, 1)

    Source: Liu et al., "A ConvNet for the 2020s" (2022), arXiv 2201.03545;
    https://github.com/huggingface/pytorch-image-models/blob/main/timm/layers/norm.py
    """
    if out_dtype is not None:
        check_out_dtype(out_dtype)
    reason = layer_norm_channels_reason(input, weight, bias, eps)
    if reason:
        _check_channels(input, weight, bias)
    rows = input.movedim(1, -1)
    if reason:
        return layer_norm(rows, rows.shape[-1:], weight, bias, eps, out_dtype=out_dtype).movedim(-1, 1)
    out_dtype = dispatch.layer_norm_dtype(input, out_dtype)
    if rows.is_contiguous():
        return _layer_norm(rows, weight, bias, tuple(rows.shape[-1:]), eps, out_dtype).movedim(-1, 1)
    return _layer_norm_channels(input, weight, bias, eps, out_dtype)


def rms_norm_channels(
    input: Tensor,
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Normalisation by the root mean square of the channels of each position of an (N, C, *) input.

    y = x / sqrt(E[x^2] + eps) * weight, with the mean over C, as timm's RmsNorm2d.

    Args:
        input: (N, C, *), float16, bfloat16, float32 or float64. The kernel reads contiguous and channels-last
            input as it is, and a copy of input with other strides.
        weight: (C,) or None; of input's dtype, or float32 beside 16 bits.
        eps, out_dtype: those of `rms_norm`.

    Returns a tensor of input's shape, channels-last where input is, else contiguous. Where the kernel does
    not apply (`normreg.functional.dispatch`), and for input that torch rejects, this is the equivalent, with
    the strides of torch's result.

    Equivalent::

        y = torch.nn.functional.rms_norm(x.movedim(1, -1), (C,), weight, eps).movedim(-1, 1)

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), arXiv 1910.07467;
    https://github.com/huggingface/pytorch-image-models/blob/main/timm/layers/norm.py
    """
    if out_dtype is not None:
        check_out_dtype(out_dtype)
    reason = rms_norm_channels_reason(input, weight, eps)
    if reason:
        _check_channels(input, weight)
    rows = input.movedim(1, -1)
    if reason:
        return rms_norm(rows, rows.shape[-1:], weight, eps, out_dtype=out_dtype).movedim(-1, 1)
    if eps is None:
        eps = torch.finfo(compute_dtype(input.dtype)).eps
    out_dtype = dispatch.rms_norm_dtype(input, out_dtype)
    if rows.is_contiguous():
        return _rms_norm(rows, weight, tuple(rows.shape[-1:]), eps, out_dtype).movedim(-1, 1)
    return _rms_norm_channels(input, weight, eps, out_dtype)


def _check_channels(input: Any, *parameters: Any) -> None:
    """Says of channels what torch would say of rows."""
    if isinstance(input, Tensor) and input.dim() < 2:
        raise ValueError(
            f"expected an (N, C, *) input, got {input.dim()} dimensions: add those that are missing, as by "
            f"input.unsqueeze(0)"
        )
    if not is_plain(input) or input.is_nested:
        return
    channels = input.shape[1]
    for name, parameter in zip(("weight", "bias"), parameters):
        if is_plain(parameter) and parameter.shape != (channels,):
            raise ValueError(
                f"expected a {name} of shape ({channels},), one value for each channel of the input, got "
                f"{tuple(parameter.shape)}: make the layer with num_channels={channels}"
            )
