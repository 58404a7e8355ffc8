"""`qk_norm`: the norms of the heads of queries and keys, in one launch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normreg.functional import dispatch
from normreg.functional.output_dtype import asked_dtype, check_out_dtype, rounded_to
from normreg.functional.tracing import one_call_when_traced
from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.tiling import heads
from normreg.ops.qk_norm import qk_norm as _qk_norm
from normreg.ops.qk_norm import turned

NORMS = ("rms_norm", "layer_norm")


@dispatch.decision("qk_norm")
def qk_norm_reason(q: Any, k: Any, parameters: Any, rotary: Any, eps: Any) -> str | None:
    reason = (
        dispatch.tensor_reason(q, (*parameters, *rotary))
        or dispatch.tensor_reason(k, (q,))
        or dispatch.dtype_reason(q, parameters)
        or dispatch.number_reason(eps=eps)
    )
    if reason:
        return reason
    if q.shape[-1] > heads.widest(q.dtype):
        return f"a head has more elements than the {heads.widest(q.dtype)} that a tile holds"
    for angles in rotary:
        if angles.requires_grad and torch.is_grad_enabled():
            return "the rotary embedding requires a gradient"
        if angles.dtype not in (q.dtype, torch.promote_types(q.dtype, torch.float32)):
            return f"the input is {q.dtype}, the rotary embedding {angles.dtype}"
    return None


@one_call_when_traced
def qk_norm(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float | None = None,
    *,
    q_bias: Tensor | None = None,
    k_bias: Tensor | None = None,
    norm: str = "rms_norm",
    rotary: tuple[Tensor, Tensor] | None = None,
    interleaved: bool = False,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Norms of the heads of queries and keys, before attention, in one launch.

    Each head of each token, the last dimension of q and of k, is normalised by itself: by `rms_norm`, or by
    `layer_norm`. The backward is one launch, and a small one for gradients of weights.

    Args:
        q: (*, D), float16, bfloat16, float32 or float64, such as (B, T, H, D) or (B, H, T, D).
        k: (*, D), of q's dtype; other sizes but the last may differ from q's, as there are fewer heads in
            grouped-query attention.
        q_weight, k_weight: (D,) or None; of q's dtype, or float32 beside 16 bits. Of a weight that is
            relative to 1 pass 1 + weight.
        eps: added to the mean square or variance; None for the norm's default: the machine epsilon of the
            dtype computed in, or 1e-5 with "layer_norm".
        q_bias, k_bias: with "layer_norm" (D,) or None, of the weights' dtype.
        norm: "rms_norm" or "layer_norm".
        rotary: (cos, sin) of rotary position embedding, which turns the first R elements of each head, behind
            the norm and in its launches; (*, R) each, with an even R of at most D, of one shape that
            broadcasts to that of q's and of k's first R elements, as (T, 1, R) does to (B, T, H, D) and
            (B, 1, T, R) to (B, H, T, D); of q's dtype, or float32 beside 16 bits. What requires a gradient
            takes torch's path.
        interleaved: with rotary, turn each element against its neighbour, 0 against 1, as GPT-J, GLM and
            Flux do; False for the first half of R against the second, as Llama, Qwen3 and GPT-NeoX do.
        out_dtype: that of `layer_norm`, or of `rms_norm`, of both results.

    Returns q and k normalised, of their shapes. Slices of a
    projection, such as `qkv.view(B, T, 3, H, D)[:, :, 0]`, and transposed ones are read where they lie; what
    has more than two strides between heads is copied first. Results have no gaps, and their dimensions lie in
    memory as `torch.empty_like` has them: those of a (B, H, T, D) view of (B, T, H, D) as its own. Where the
    kernel does not apply (`normreg.functional.dispatch`), this is the equivalent below. Raises ValueError for
    another norm, q and k that differ in D, dtype or device, weights and biases whose shape is not (D,),
    biases with "rms_norm", a rotary that is not two tensors which broadcast.

    Equivalent::

        q = F.rms_norm(q, (D,), q_weight, eps)    # or F.layer_norm(q, (D,), q_weight, q_bias, eps)
        k = F.rms_norm(k, (D,), k_weight, eps)

        # with rotary, of which R is the last size; so is k
        a, b = q[..., :R].chunk(2, -1)                # interleaved: q[..., 0:R:2], q[..., 1:R:2]
        other = torch.cat((-b, a), -1)                # interleaved: torch.stack((-b, a), -1).flatten(-2)
        q = torch.cat((q[..., :R] * cos + other * sin, q[..., R:]), -1)

    Sources: Henry et al., "Query-Key Normalization for Transformers" (2020), arXiv 2010.04245; Dehghani et
    al., "Scaling Vision Transformers to 22 Billion Parameters" (2023), arXiv 2302.05442; in Qwen3:
    https://github.com/huggingface/transformers/blob/main/src/transformers/models/qwen3/modeling_qwen3.py
    """
    parameters = dict(q_weight=q_weight, k_weight=k_weight, q_bias=q_bias, k_bias=k_bias)
    _check(q, k, norm, parameters)
    _check_rotary(q, k, rotary)
    cos, sin = rotary or (None, None)
    centered = norm == "layer_norm"
    if eps is None:
        eps = 1e-5 if centered else torch.finfo(compute_dtype(q.dtype)).eps
    check_out_dtype(out_dtype)
    if qk_norm_reason(q, k, tuple(parameters.values()), rotary or (), eps):

        def norm_and_turn(x: Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Tensor:
            y = F.layer_norm(x, shape, weight, bias, eps) if centered else F.rms_norm(x, shape, weight, eps)
            return turned(y, cos, sin, interleaved)

        asked = asked_dtype(q, out_dtype)
        if asked is not None:  # or what is turned would be rounded before
            q, k = (x.to(compute_dtype(x.dtype)) for x in (q, k))
        call = rounded_to(norm_and_turn, asked)
        return (
            call(q, q.shape[-1:], q_weight, q_bias, eps),
            call(k, k.shape[-1:], k_weight, k_bias, eps),
        )
    result_dtype = dispatch.layer_norm_dtype if centered else dispatch.rms_norm_dtype
    out_dtype = result_dtype(q, out_dtype)
    return _qk_norm(q, k, *parameters.values(), cos, sin, eps, out_dtype, centered, bool(interleaved))


def check_norm(norm: str, has_bias: bool) -> None:
    if norm not in NORMS:
        raise ValueError(f"expected a norm of {', '.join(NORMS)}, got {norm!r}: pass one of them")
    if has_bias and norm == "rms_norm":
        raise ValueError('expected no bias with norm="rms_norm", got one: pass norm="layer_norm"')


def _check(q: Tensor, k: Tensor, norm: str, parameters: dict[str, Tensor | None]) -> None:
    check_norm(norm, any(parameters[name] is not None for name in ("q_bias", "k_bias")))
    for name, x in (("q", q), ("k", k)):
        if not isinstance(x, Tensor) or x.dim() == 0:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
            raise ValueError(f"expected a {name} of shape (*, D), got {got}: pass a tensor of heads")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"expected heads of q and k of one size, got {q.shape[-1]} and {k.shape[-1]}: split the last "
            f"dimension of both into heads, as by q.unflatten(-1, (-1, D))"
        )
    for of in ("dtype", "device"):
        if getattr(q, of) != getattr(k, of):
            raise ValueError(
                f"expected q and k of one {of}, got {getattr(q, of)} and {getattr(k, of)}: convert one by .to"
            )
    for name, parameter in parameters.items():
        if parameter is not None and getattr(parameter, "shape", None) != q.shape[-1:]:
            got = str(tuple(parameter.shape)) if isinstance(parameter, Tensor) else repr(parameter)
            raise ValueError(
                f"expected a {name} of shape ({q.shape[-1]},), one value for each element of a head, got "
                f"{got}: split q and k into heads of that size"
            )


def _check_rotary(q: Tensor, k: Tensor, rotary: Any) -> None:
    if rotary is None:
        return
    if not isinstance(rotary, (tuple, list)) or [isinstance(t, Tensor) for t in rotary] != [True, True]:
        parts = rotary if isinstance(rotary, (tuple, list)) else [rotary]
        got = ", ".join(type(part).__name__ for part in parts)
        raise ValueError(f"expected rotary to be two tensors, (cos, sin), got ({got}): pass both")
    cos, sin = rotary
    if cos.shape != sin.shape or cos.dtype != sin.dtype:
        raise ValueError(
            f"expected cos and sin of one shape and dtype, got {tuple(cos.shape)} of {cos.dtype} and "
            f"{tuple(sin.shape)} of {sin.dtype}: pass both as they are multiplied with q"
        )
    if not cos.is_floating_point():
        raise ValueError(
            f"expected cos and sin of a floating-point dtype, got {cos.dtype}: pass the real and the "
            f"imaginary part of complex ones, each of a pair's twice"
        )
    if cos.dim() == 0 or cos.shape[-1] % 2 or not 0 < cos.shape[-1] <= q.shape[-1]:
        raise ValueError(
            f"expected cos and sin of (*, R) with an even R of at most {q.shape[-1]}, the size of a head, "
            f"got {tuple(cos.shape)}: pass both angles of each pair, those of R // 2 pairs twice"
        )
    for name, x in (("q", q), ("k", k)):
        sizes = zip(reversed(cos.shape[:-1]), reversed(x.shape[:-1]))
        if cos.dim() > x.dim() or not all(size in (1, of_x) for size, of_x in sizes):
            raise ValueError(
                f"expected cos and sin that broadcast to {name}, of shape {tuple(x.shape)}, got "
                f"{tuple(cos.shape)}: give them a dimension of 1 for heads, as by cos.unsqueeze(-2) for "
                f"those of (B, T, H, D)"
            )
