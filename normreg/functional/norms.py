"""`layer_norm`, `rms_norm` and `instance_norm`; those over channels are in `channel_norms`."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format

from normreg.distributed import sharding
from normreg.functional import dispatch
from normreg.functional.float8 import norm_in_float8
from normreg.functional.output_dtype import asked_dtype, check_out_dtype, rounded_to
from normreg.functional.residual_norms import dropout_add_layer_norm, dropout_add_rms_norm
from normreg.kernels.dtypes import FLOAT8, compute_dtype
from normreg.kernels.memory_format import is_channels_last, is_dense
from normreg.ops import batch_norm as _batch_norm
from normreg.ops.instance_norm import instance_norm as _instance_norm
from normreg.ops.layer_norm import layer_norm as _layer_norm
from normreg.ops.rms_norm import rms_norm as _rms_norm


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    prenorm: bool = False,
    out_dtype: torch.dtype | None = None,
    scale: Tensor | None = None,
) -> Tensor | Any:
    r"""Layer normalisation over the trailing dimensions `normalized_shape`.

    y = (x - E[x]) / sqrt(Var[x] + eps) * weight + bias, with the biased variance, per leading index.

    Args:
        input: (*, *normalized_shape), float16, bfloat16, float32 or float64, any strides. Rows that are
            equally far apart, as in a slice of a projection, are read where they are.
        normalized_shape: the trailing dimensions, a sequence of ints.
        weight, bias: of shape normalized_shape, or None; of input's dtype, or float32 beside 16 bits.
        eps: added to the variance.
        residual: added to input in the same launch, as `dropout_add_layer_norm` does: x = input + residual.
        prenorm: return the sum as well, (y, x).
        out_dtype: the result's dtype, a floating-point one, of any input: rounded once, and no launch for it.
            None for torch's: input's, and float32 of 16 bits where CUDA's autocast is on, unless
            `normreg.autocast_output("input")` says otherwise. torch.float8_e4m3fn returns (y8, scale), as
            below, for inference.
        scale: of a result in float8: float32, one element or one a row, (*, 1) where a row has one dimension;
            None to find each row's.

    Returns a contiguous tensor of input's shape. Raises ValueError for another out_dtype or scale, and
    RuntimeError where a result in float8 would need a gradient.
    Statistics are computed and kept in float32, float64 for float64. Where the kernel does not apply
    (`normreg.functional.dispatch`), and for input that torch rejects, this is
    `torch.nn.functional.layer_norm`.

    Equivalent::

        mean = x.mean(dims, keepdim=True)                   # dims: the trailing dimensions
        var = x.var(dims, correction=0, keepdim=True)
        y = (x - mean) / (var + eps).sqrt() * weight + bias

        # in float8: of y in float32, never rounded to x.dtype; y is near y8.float() * scale
        scale = (y.abs().amax(dims, keepdim=True) / 448).clamp_min(1 / (448 * 512))    # unless given
        y8 = (y * scale.reciprocal()).clamp(-448, 448).to(torch.float8_e4m3fn)

    Source: Ba, Kiros and Hinton, "Layer Normalization" (2016), arXiv 1607.06450;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.layer_norm.html
    """
    if residual is not None or prenorm:
        arguments = input, residual, normalized_shape, weight, bias
        options: Any = dict(p=0.0, training=False, eps=eps, prenorm=prenorm, out_dtype=out_dtype)
        check_out_dtype(out_dtype, scale)
        return dropout_add_layer_norm(*arguments, **options)
    if out_dtype is not None or scale is not None:
        if out_dtype == FLOAT8:
            return norm_in_float8(input, normalized_shape, weight, bias, eps, scale, True)
        check_out_dtype(out_dtype, scale)
    if dispatch.layer_norm(input, normalized_shape, weight, bias, eps):
        in_torch = rounded_to(F.layer_norm, asked_dtype(input, out_dtype))
        ours = functools.partial(layer_norm, out_dtype=out_dtype)
        return sharding.over_rows(ours, in_torch, input)(input, normalized_shape, weight, bias, eps)
    out_dtype = dispatch.layer_norm_dtype(input, out_dtype)
    return _layer_norm(input, weight, bias, tuple(normalized_shape), eps, out_dtype)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
    prenorm: bool = False,
    out_dtype: torch.dtype | None = None,
    scale: Tensor | None = None,
) -> Tensor | Any:
    r"""Normalisation by the root mean square over the trailing dimensions `normalized_shape`.

    y = x / sqrt(E[x^2] + eps) * weight, per leading index.

    Args:
        input: (*, *normalized_shape), float16, bfloat16, float32 or float64, any strides.
        normalized_shape: the trailing dimensions, a sequence of ints.
        weight: of shape normalized_shape, or None; of input's dtype, or float32 beside 16 bits.
        eps: added to the mean square; None for the machine epsilon of the dtype computed in, which is
            float32 for 16-bit input.
        residual, prenorm, out_dtype, scale: those of `layer_norm`. Before torch 2.12 autocast does not change
            the result's dtype.

    Returns a contiguous tensor of input's shape. The mean square is computed, and its inverse root kept, in
    float32, float64 for float64. Where the kernel does not apply (`normreg.functional.dispatch`), and for
    input that torch rejects, this is `torch.nn.functional.rms_norm`.

    Equivalent::

        rstd = (x.square().mean(dims, keepdim=True) + eps).rsqrt()    # dims: the trailing dimensions
        y = x * rstd * weight

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), arXiv 1910.07467;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.rms_norm.html
    """
    if residual is not None or prenorm:
        arguments = input, residual, normalized_shape, weight
        options: Any = dict(p=0.0, training=False, eps=eps, prenorm=prenorm, out_dtype=out_dtype)
        check_out_dtype(out_dtype, scale)
        return dropout_add_rms_norm(*arguments, **options)
    if out_dtype is not None or scale is not None:
        if out_dtype == FLOAT8:
            return norm_in_float8(input, normalized_shape, weight, None, eps, scale, False)
        check_out_dtype(out_dtype, scale)
    if dispatch.rms_norm(input, normalized_shape, weight, eps):
        in_torch = rounded_to(F.rms_norm, asked_dtype(input, out_dtype))
        ours = functools.partial(rms_norm, out_dtype=out_dtype)
        return sharding.over_rows(ours, in_torch, input)(input, normalized_shape, weight, eps)
    if eps is None:
        eps = torch.finfo(compute_dtype(input.dtype)).eps
    out_dtype = dispatch.rms_norm_dtype(input, out_dtype)
    return _rms_norm(input, weight, tuple(normalized_shape), eps, out_dtype)


def check_memory_format(memory_format: Any) -> torch.memory_format:
    if memory_format is torch.contiguous_format or memory_format is torch.preserve_format:
        return memory_format
    raise ValueError(
        f"expected memory_format to be torch.contiguous_format or torch.preserve_format, got "
        f"{memory_format!r}: pass torch.preserve_format to keep channels_last"
    )


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    r"""Normalisation of each channel of each sample of an (N, C, *) input over its positions.

    y = (x - mean) / sqrt(var + eps) * weight + bias. With use_input_stats, mean and biased variance of the
    channel of the sample are used, and running_mean and running_var, where given, are updated in place:
    running = (1 - momentum) * running + momentum * (mean over the samples), with the unbiased variance.
    Otherwise mean = running_mean and var = running_var, which is `batch_norm` in evaluation.

    Args:
        input: (N, C, *), float16, bfloat16, float32 or float64, any strides.
        running_mean, running_var: (C,), both or neither.
        weight, bias: (C,) or None; like the statistics of input's dtype, or float32 beside 16 bits.
        use_input_stats: normalise with the statistics of input.
        momentum: the weight of the new statistics.
        eps: added to the variance.
        memory_format: how the result lies in memory. `torch.contiguous_format`, as torch's does, or
            `torch.preserve_format`: channels-last (or channels-last-3d) where input is, with the strides of
            `torch.empty_like(input)`, and else contiguous.

    Returns a tensor of input's shape and dtype. With `torch.preserve_format` the kernel reads channels-last
    input as it is, and the gradient of input is channels-last, too; it reads a copy of any other input that
    is not contiguous. Raises what `torch.nn.functional.instance_norm` raises: RuntimeError for channel
    counts, devices and dtypes, ValueError for one position; and ValueError for another memory_format. No
    kernel has updated anything by then. Where the kernel does not apply (`normreg.functional.dispatch`) this
    is torch's operator, with a copy where its result lies differently.

    Equivalent::

        dims = tuple(range(2, x.dim()))
        mean, var = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
        y = (x - mean) / (var + eps).sqrt()
        y = y * weight[:, None, None] + bias[:, None, None]    # (N, C, H, W)

    Source: Ulyanov, Vedaldi and Lempitsky, "Instance Normalization" (2016), arXiv 1607.08022;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.instance_norm.html
    """
    preserves = check_memory_format(memory_format) is torch.preserve_format
    statistics = (running_mean, running_var)
    if dispatch.instance_norm(input, *statistics, weight, bias, use_input_stats, momentum, eps):
        y = F.instance_norm(input, *statistics, weight, bias, use_input_stats, momentum, eps)
        if preserves:  # flattened, because of one sample's channels-last dy torch's backward is wrong
            y = y.flatten().view(y.shape).contiguous(memory_format=suggest_memory_format(input))
        return y
    if not (input.is_contiguous() or (preserves and (is_dense(input) or is_channels_last(input)))):
        input = input.contiguous()
    if use_input_stats:
        return _instance_norm(input, weight, bias, *statistics, momentum, eps)
    return _batch_norm.batch_norm(input, weight, bias, *statistics, None, False, momentum, eps)
