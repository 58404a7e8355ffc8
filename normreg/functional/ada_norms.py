"""`ada_layer_norm` and `ada_rms_norm`: norms whose scale and shift come from a condition."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from normreg.functional import dispatch
from normreg.functional.norms import layer_norm, rms_norm
from normreg.functional.output_dtype import asked_dtype, check_out_dtype
from normreg.functional.residual import check_can_be_added, check_residual, residual_reason
from normreg.functional.tracing import one_call_when_traced
from normreg.kernels.ada_norm import is_held
from normreg.kernels.dtypes import FLOATING, compute_dtype
from normreg.ops.ada_norm import ada_norm as _ada_norm
from normreg.ops.ada_norm import is_of_rows


class Modulation(NamedTuple):
    """A vector for each row, for each sample or for all; of shift and gate or None."""

    scale: Tensor
    shift: Tensor | None
    gate: Tensor | None


@one_call_when_traced
def ada_layer_norm(
    input: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    prenorm: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor | Any:
    r"""LayerNorm over the last dimension, with a scale and shift of each sample or row: adaLN of DiT.

    z = residual + gate * x and y = layer_norm(z) * (1 + scale) + shift: the end of a block and the start of
    the next one, in the launches of LayerNorm. The forward reads x and the residual and writes z and y; the
    backward reads dy and z, and x for the gradient of the gate, and adds up the gradients of scale, shift and
    gate as it goes. What makes these three of the condition, a linear layer, is left to the caller.

    Args:
        input: (N, *, C), float16, bfloat16, float32 or float64, any strides. Rows that are equally far apart,
            as in a slice of a projection, are read where they are.
        scale, shift, gate: (N, C) or (N, 1, ..., 1, C) for each sample, input's shape for each row, (C,) or
            (1, ..., 1, C) for all, and what lies between, as (N, F, 1, C) of the frames of an (N, F, T, C)
            input, each as it likes; shift and gate may be None. Of input's dtype, or of 16 or 32 bits beside
            such an input. Pieces of one projection, as `chunk` gives them, are read where they are.
        weight, bias: (C,) or None; of input's dtype, or float32 beside 16 bits.
        eps: added to the variance.
        residual: of input's shape and a floating-point dtype, or None, and then there is no gate.
        prenorm: return z as well, the residual of the next sum.
        out_dtype: y's, as in `layer_norm`; None for input's or, where z has input's, that of `layer_norm`.

    Returns y, or with prenorm (y, z). z has the dtype that input and residual are promoted to, and is rounded
    to it before it is normalised; 1 + scale is computed in float32, float64 for float64. Where the kernel
    does not apply (`normreg.functional.dispatch`), and for a row wider than a program's tile, this is the
    equivalent below.
    Raises ValueError for another shape or dtype of scale, shift, gate or residual and for a gate without a
    residual, and what `layer_norm` raises.

    Equivalent::

        z = residual + gate[:, None] * x                    # (N, T, C)
        y = F.layer_norm(z, (C,), weight, bias, eps) * (1 + scale[:, None].float()) + shift[:, None]
        y = y.to(x.dtype)

    Source: Peebles and Xie, "Scalable Diffusion Models with Transformers" (2022), arXiv 2212.09748;
    https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/normalization.py
    """
    modulation = Modulation(scale, shift, gate)
    _check(input, modulation, residual)
    check_out_dtype(out_dtype)
    if ada_layer_norm_reason(input, modulation, residual, weight, bias, eps):
        return _in_torch(layer_norm, input, modulation, residual, (weight, bias), eps, out_dtype, prenorm)
    z_dtype = _sum_dtype(input, residual)
    if out_dtype is None:
        out_dtype = dispatch.layer_norm_dtype(input) if z_dtype == input.dtype else input.dtype
    dtypes = z_dtype, out_dtype
    return _by_kernels(input, modulation, residual, (weight, bias), eps, dtypes, True, prenorm)


@one_call_when_traced
def ada_rms_norm(
    input: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    prenorm: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor | Any:
    r"""RMSNorm over the last dimension, with a scale and shift of each sample or row.

    z = residual + gate * x and y = rms_norm(z) * (1 + scale) + shift. Arguments and result are those of
    `ada_layer_norm`, with the weight of `rms_norm`.

    Equivalent::

        z = residual + gate[:, None] * x                    # (N, T, C)
        y = F.rms_norm(z, (C,), weight, eps) * (1 + scale[:, None].float()) + shift[:, None]
        y = y.to(x.dtype)

    Sources: `rms_norm`'s and `ada_layer_norm`'s
    """
    modulation = Modulation(scale, shift, gate)
    _check(input, modulation, residual)
    check_out_dtype(out_dtype)
    if ada_rms_norm_reason(input, modulation, residual, weight, eps):
        return _in_torch(rms_norm, input, modulation, residual, (weight,), eps, out_dtype, prenorm)
    z_dtype = _sum_dtype(input, residual)
    if out_dtype is None:
        out_dtype = dispatch.rms_norm_dtype(input) if z_dtype == input.dtype else input.dtype
    dtypes = z_dtype, out_dtype
    return _by_kernels(input, modulation, residual, (weight, None), eps, dtypes, False, prenorm)


@dispatch.decision("ada_layer_norm")
def ada_layer_norm_reason(
    x: Any, modulation: Modulation, residual: Tensor | None, weight: Any, bias: Any, eps: Any
) -> str | None:
    reason = dispatch.rows_reason(x, x.shape[-1:], (weight, bias), eps)
    return reason or _modulated_reason(x, modulation, residual)


@dispatch.decision("ada_rms_norm")
def ada_rms_norm_reason(
    x: Any, modulation: Modulation, residual: Tensor | None, weight: Any, eps: Any
) -> str | None:
    reason = dispatch.rows_reason(x, x.shape[-1:], (weight,), eps)
    return reason or _modulated_reason(x, modulation, residual)


def _modulated_reason(x: Tensor, modulation: Modulation, residual: Tensor | None) -> str | None:
    reason = dispatch.tensor_reason(x, modulation)
    if reason is None and residual is not None:
        reason = residual_reason(x, residual)
    if reason:
        return reason
    if not torch.compiler.is_compiling() and any(m is not None and m.is_neg() for m in modulation):
        return "a modulation is lazily negated"
    if not is_held(x.shape[-1], _sum_dtype(x, residual)):
        return "a row is wider than the tile of a program"
    return None


def _sum_dtype(x: Tensor, residual: Tensor | None) -> torch.dtype:
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)


def _check(x: Tensor, modulation: Modulation, residual: Tensor | None) -> None:
    if residual is not None:
        check_residual(x, residual)
    elif modulation.gate is not None:
        raise ValueError(
            "expected a residual beside the gate, got None: pass residual=, or multiply the input by the gate"
        )
    if modulation.scale is None:
        raise ValueError("expected a scale, got None: pass a tensor, or call layer_norm or rms_norm")
    for name, m in modulation._asdict().items():
        if m is not None:
            _check_modulation(name, x, m)


def _check_modulation(name: str, x: Tensor, m: Any) -> None:
    if not isinstance(m, Tensor):
        raise ValueError(
            f"expected {name} to be a tensor, got {m!r}: pass one, such as torch.full_like(input[0], 0.1)"
        )
    dtype = compute_dtype(x.dtype)
    if m.dtype not in FLOATING or torch.promote_types(dtype, m.dtype) != dtype:
        raise ValueError(
            f"expected {name} of a floating-point dtype no wider than {dtype}, got {m.dtype}: convert it by "
            ".to(input.dtype)"
        )
    if _shared(x, m) is None:
        first, last = [*x.shape[:1]], [*x.shape[-1:]]
        raise ValueError(
            f"expected {name} of shape {first + last} for each sample, {[*x.shape]} for each row, or {last} "
            f"for all, got {[*m.shape]}: make it one of these, as by {name}.flatten(1)"
        )


def _shared(x: Tensor, m: Tensor) -> int | None:
    """How many of x's leading dimensions a modulation has a vector for each index of; None for another shape.

    What has x's shape has a vector for each row; with two dimensions the first is x's.
    """
    if is_of_rows(m, x):
        return x.dim() - 1
    if m.dim() == 0 or m.dim() > x.dim() or m.shape[-1] != x.shape[-1]:
        return None
    leading = [*m.shape[:-1]]
    while leading and leading[-1] == 1:
        leading.pop()
    fits = leading == [*x.shape[: len(leading)]] and (m.dim() in (2, x.dim()) or not leading)
    return len(leading) if fits else None


def _beside_rows(x: Tensor, m: Tensor | None) -> Tensor | None:
    """A modulation as it broadcasts with x."""
    if m is None or m.dim() == 1 or m.dim() == x.dim():
        return m
    return m.reshape(m.shape[0], *[1] * (x.dim() - 2), -1)


def _in_torch(
    norm: Callable[..., Tensor],
    x: Tensor,
    modulation: Modulation,
    residual: Tensor | None,
    parameters: tuple[Tensor | None, ...],
    eps: float,
    out_dtype: torch.dtype | None,
    prenorm: bool,
) -> Tensor | Any:
    scale, shift, gate = (_beside_rows(x, m) for m in modulation)
    assert scale is not None  # which _check has refused
    z = x
    if residual is not None:
        check_can_be_added(residual)
        z = (residual + (x if gate is None else gate * x)).to(_sum_dtype(x, residual))
    if z.dtype != x.dtype:
        parameters = tuple(None if p is None else p.to(z.dtype) for p in parameters)
    dtype, wide = asked_dtype(x, out_dtype), compute_dtype(x.dtype)
    if dtype is None:
        y = norm(z, x.shape[-1:], *parameters, eps)
        dtype = y.dtype if z.dtype == x.dtype else x.dtype
    else:
        y = norm(z, x.shape[-1:], *parameters, eps, out_dtype=torch.promote_types(wide, dtype))
    y = y * (1 + scale.to(wide))
    y = (y if shift is None else y + shift).to(dtype)
    return (y, z) if prenorm else y


def _by_kernels(
    x: Tensor,
    modulation: Modulation,
    residual: Tensor | None,
    parameters: tuple[Tensor | None, Tensor | None],
    eps: float,
    dtypes: tuple[torch.dtype, torch.dtype],
    centered: bool,
    prenorm: bool,
) -> Tensor | Any:
    """dtypes: of z and y."""
    scale, shift, gate = _as_vectors(x, modulation)
    y, z = _ada_norm(x, scale, shift, *parameters, residual, gate, eps, *dtypes, centered, prenorm)
    return (y, x if z is None else z) if prenorm else y


def _as_vectors(x: Tensor, modulation: Modulation) -> Iterator[Tensor | None]:
    """Each modulation of x's shape, or with as many vectors as any other that is not; shift as scale."""
    of_rows = is_of_rows(modulation.scale, x)
    shared = [_shared(x, m) or 0 for m in modulation if m is not None and not is_of_rows(m, x)]
    most = max(shared, default=0)
    for name, m in modulation._asdict().items():
        if is_of_rows(m, x):
            yield m
        elif of_rows and name == "shift":
            yield cast(Tensor, _beside_rows(x, m)).expand(x.shape)
        elif cast(int, _shared(x, m)) < most:
            vectors = *x.shape[:most], *[1] * (x.dim() - 1 - most), x.shape[-1]
            wide = m.to(compute_dtype(x.dtype))  # of which gradients are summed before they are rounded
            yield cast(Tensor, _beside_rows(x, wide)).expand(vectors)
        else:
            yield m
