"""`dropout_add_layer_norm` and `dropout_add_rms_norm`: the end of a residual branch in a norm's launches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normreg.functional import dispatch
from normreg.functional.dropouts import check_generator
from normreg.functional.output_dtype import asked_dtype, check_out_dtype, rounded_to
from normreg.functional.residual import (
    Branch,
    branch_in_torch,
    branch_reason,
    check_can_be_added,
    check_residual,
    check_scales,
)
from normreg.functional.tracing import one_call_when_traced
from normreg.kernels.dropout.drop import of_elements
from normreg.kernels.dtypes import compute_dtype
from normreg.ops.dropout_add_norm import dropout_add_norm as _dropout_add_norm
from normreg.ops.layer_norm import layer_norm as _layer_norm
from normreg.ops.rms_norm import rms_norm as _rms_norm


@dispatch.decision("dropout_add_layer_norm")
def dropout_add_layer_norm_reason(
    x: Any, branch: Branch, normalized_shape: Any, weight: Any, bias: Any, eps: Any
) -> str | None:
    reason = dispatch.rows_reason(x, normalized_shape, (weight, bias), eps)
    return reason or branch_reason(branch, torch.Size(normalized_shape))


@one_call_when_traced
def dropout_add_layer_norm(
    input: Tensor,
    residual: Tensor | None,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    eps: float = 1e-5,
    *,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    row_scale: Tensor | None = None,
    layer_scale: Tensor | None = None,
    generator: torch.Generator | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor | Any:
    r"""Dropout, the sum with a residual and LayerNorm in the launches of LayerNorm.

    z = residual + dropout(x) * row_scale * layer_scale and y = layer_norm(z). The forward reads x and the
    residual and writes z and y; the backward reads dy and z, writes both gradients and draws the mask again.
    It needs z and the rows' mean and rstd, and with a layer scale also x.

    Args:
        input: (*, *normalized_shape), float16, bfloat16, float32 or float64, any strides.
        residual: of input's shape and a floating-point dtype, or None for 0.
        normalized_shape, weight, bias, eps: those of `layer_norm`.
        p, training, generator: those of `dropout`. For p = 0 and without training nothing is dropped.
        prenorm: return z as well, the residual of the next block.
        residual_in_fp32: z is float32 beside 16 bits.
        row_scale: a factor for each row or sample, as stochastic depth has it. Its shape is the beginning of
            the leading dimensions, such as (N,). A row_scale that requires a gradient takes torch's path.
        layer_scale: of shape normalized_shape, of input's dtype, or float32 beside 16 bits.
        out_dtype: y's, as in `layer_norm`; None for input's or, where z has input's, that of `layer_norm`.

    Returns y, or with prenorm (y, z). z has the dtype that input and residual are promoted to, and is rounded
    to it before it is normalised. Where the kernel does not apply (`normreg.functional.dispatch`), this is
    the equivalent below. Raises ValueError for p outside [0, 1], another shape of residual, row_scale
    or layer_scale and another dtype of residual, and what `dropout` and `layer_norm` raise.

    Equivalent::

        z = residual + F.dropout(x, p, training) * row_scale[:, None] * layer_scale
        y = F.layer_norm(z, normalized_shape, weight, bias, eps).to(x.dtype)

    Sources: `layer_norm`'s and `dropout_add`'s; the names are those of
    https://github.com/Dao-AILab/flash-attention/blob/main/flash_attn/ops/triton/layer_norm.py
    """
    branch = Branch(input, residual, p if training else 0.0, row_scale, layer_scale, generator)
    _check(branch, normalized_shape)
    check_out_dtype(out_dtype)
    z_dtype = _sum_dtype(branch, residual_in_fp32)
    if dropout_add_layer_norm_reason(input, branch, normalized_shape, weight, bias, eps):
        z = _sum_in_torch(branch, z_dtype)
        y = _norm_in_torch(F.layer_norm, z, input, out_dtype)(z, normalized_shape, weight, bias, eps)
        return (y, z) if prenorm else y
    shape = tuple(normalized_shape)
    if out_dtype is None:
        out_dtype = dispatch.layer_norm_dtype(input) if z_dtype == input.dtype else input.dtype
    if _sum_is_the_input(branch, z_dtype):
        y, z = _layer_norm(input, weight, bias, shape, eps, out_dtype), input
    else:
        y, z = _sum_and_norm(branch, weight, bias, shape, eps, z_dtype, out_dtype, True, prenorm)
    return (y, z) if prenorm else y


@dispatch.decision("dropout_add_rms_norm")
def dropout_add_rms_norm_reason(
    x: Any, branch: Branch, normalized_shape: Any, weight: Any, eps: Any
) -> str | None:
    reason = dispatch.rows_reason(x, normalized_shape, (weight,), 0.0 if eps is None else eps)
    return reason or branch_reason(branch, torch.Size(normalized_shape))


@one_call_when_traced
def dropout_add_rms_norm(
    input: Tensor,
    residual: Tensor | None,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    eps: float | None = None,
    *,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    row_scale: Tensor | None = None,
    layer_scale: Tensor | None = None,
    generator: torch.Generator | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor | Any:
    r"""Dropout, the sum with a residual and RMSNorm in the launches of RMSNorm.

    z = residual + dropout(x) * row_scale * layer_scale and y = rms_norm(z). Arguments and result are those of
    `dropout_add_layer_norm`, with the weight and eps of `rms_norm`, whose machine epsilon is that of z.

    Equivalent::

        z = residual + F.dropout(x, p, training) * row_scale[:, None] * layer_scale
        y = F.rms_norm(z, normalized_shape, weight, eps).to(x.dtype)

    Sources: `rms_norm`'s and `dropout_add`'s
    """
    branch = Branch(input, residual, p if training else 0.0, row_scale, layer_scale, generator)
    _check(branch, normalized_shape)
    check_out_dtype(out_dtype)
    z_dtype = _sum_dtype(branch, residual_in_fp32)
    if dropout_add_rms_norm_reason(input, branch, normalized_shape, weight, eps):
        z = _sum_in_torch(branch, z_dtype)
        y = _norm_in_torch(F.rms_norm, z, input, out_dtype)(z, normalized_shape, weight, eps)
        return (y, z) if prenorm else y
    shape = tuple(normalized_shape)
    eps = torch.finfo(compute_dtype(z_dtype)).eps if eps is None else eps
    if out_dtype is None:
        out_dtype = dispatch.rms_norm_dtype(input) if z_dtype == input.dtype else input.dtype
    if _sum_is_the_input(branch, z_dtype):
        y, z = _rms_norm(input, weight, shape, eps, out_dtype), input
    else:
        y, z = _sum_and_norm(branch, weight, None, shape, eps, z_dtype, out_dtype, False, prenorm)
    return (y, z) if prenorm else y


def _check(branch: Branch, normalized_shape: Sequence[int]) -> None:
    if branch.residual is not None:
        check_residual(branch.x, branch.residual)
    if branch.layer_scale is not None or branch.row_scale is not None:
        check_scales(branch, torch.Size(normalized_shape))
    if branch.generator is not None:
        check_generator(branch.x, branch.generator)


def _sum_dtype(branch: Branch, residual_in_fp32: bool) -> torch.dtype:
    dtype = branch.x.dtype
    if branch.residual is not None:
        dtype = torch.promote_types(dtype, branch.residual.dtype)
    return torch.promote_types(dtype, torch.float32) if residual_in_fp32 else dtype


def _sum_is_the_input(branch: Branch, z_dtype: torch.dtype) -> bool:
    """Says whether z is simply the input."""
    return branch.residual is None and branch.only_adds and z_dtype == branch.x.dtype


def _sum_and_norm(
    branch: Branch,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: tuple[int, ...],
    eps: float,
    z_dtype: torch.dtype,
    out_dtype: torch.dtype,
    centered: bool,
    prenorm: bool,
) -> tuple[Tensor, Tensor]:
    """y and z by the kernels; centered: LayerNorm rather than RMSNorm."""
    x, residual, p, row_scale, layer_scale, generator, _ = branch
    rule = of_elements(p, x.dtype)
    return _dropout_add_norm(
        x,
        residual,
        weight,
        bias,
        layer_scale,
        row_scale,
        rule,
        generator,
        shape,
        eps,
        z_dtype,
        out_dtype,
        centered,
        prenorm,
    )


def _sum_in_torch(branch: Branch, z_dtype: torch.dtype) -> Tensor:
    if branch.residual is None:
        return branch_in_torch(branch).to(z_dtype)
    check_can_be_added(branch.residual)
    return branch_in_torch(branch).to(z_dtype) + branch.residual


def _norm_in_torch(
    norm: Callable[..., Tensor], z: Tensor, x: Tensor, out_dtype: torch.dtype | None
) -> Callable[..., Tensor]:
    """torch's norm of z with a result as x's would have, where no dtype is asked for."""
    asked = asked_dtype(x, out_dtype)
    return rounded_to(norm, x.dtype if asked is None and z.dtype != x.dtype else asked)
