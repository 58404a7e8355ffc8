"""`rms_norm_gated`: RMSNorm with a gate, before it or behind it, in one launch."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normreg.functional import dispatch
from normreg.functional.norms import rms_norm
from normreg.functional.output_dtype import check_out_dtype
from normreg.functional.tracing import one_call_when_traced
from normreg.kernels.device.activations import GATES
from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.gated_norm import widest
from normreg.kernels.tiling.modulated import gated_norm_is_held
from normreg.ops.rms_norm_gated import rms_norm_gated as _rms_norm_gated

IN_TORCH: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "sigmoid": torch.sigmoid}


@dispatch.decision("rms_norm_gated")
def rms_norm_gated_reason(
    x: Any, gate: Any, weight: Any, bias: Any, group_size: Any, eps: Any, out_dtype: Any
) -> str | None:
    if gate is None:
        return "there is no gate"
    reason = (
        dispatch.tensor_reason(x, (gate, weight, bias))
        or dispatch.dtype_reason(x, (gate,))
        or dispatch.dtype_reason(x, (weight, bias))
        or dispatch.number_reason(eps=eps)
    )
    if reason:
        return reason
    held = gated_norm_is_held(group_size, widest(x.dtype, gate.dtype, out_dtype))
    return None if held else "a group has more elements than a program holds"


@one_call_when_traced
def rms_norm_gated(
    input: Tensor,
    gate: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = 1e-5,
    *,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    act: str = "silu",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""RMSNorm with a gate, as linear attention and state space models have it behind their heads.

    y = (x * rstd * weight + bias) * act(gate) with rstd = 1 / sqrt(E[x^2] + eps), or where the norm is not
    before the gate y = u * rstd * weight + bias, with u = x * act(gate) and rstd of u. The backward computes
    act(gate) once more, so it needs only the arguments and rstd.

    Args:
        input: (*, C), float16, bfloat16, float32 or float64. Where its last dimension is dense, as in a slice
            of a projection, and its rows, or heads of rows, are equally far apart, it is read where it is.
        gate: of input's shape and dtype, or float32 beside 16 bits; read as input is. None for no gate.
        weight, bias: (C,) or None; of input's dtype, or float32 beside 16 bits.
        eps: added to the mean square; None for that of `rms_norm`.
        group_size: how many adjacent elements of the last dimension are normalised together; it divides C.
            None for all of them.
        norm_before_gate: normalise, then multiply by the gate, as flash-linear-attention, Qwen3-Next and Kimi
            Linear do; False for the other order, Mamba2's.
        act: "silu", which is swish, or "sigmoid".
        out_dtype: the result's dtype, a floating-point one; None for input's, under autocast, too.

    Returns a contiguous tensor of input's shape, rounded to its dtype once. Where the kernel does not
    apply (`normreg.functional.dispatch`), as to a group too wide for a program, this is the equivalent below.
    Raises ValueError for another shape of gate, weight or bias, for a group_size that does not divide C, and
    for another act or out_dtype.

    Equivalent::

        x, a = input.float(), F.silu(gate.float())
        u = (x if norm_before_gate else x * a).unflatten(-1, (-1, group_size))
        y = F.rms_norm(u, (group_size,), eps=eps).flatten(-2) * weight + bias
        y = (y * a if norm_before_gate else y).to(out_dtype or input.dtype)

    Source: Dao and Gu, "Transformers are SSMs" (2024), arXiv 2405.21060, whose layer is
    https://github.com/state-spaces/mamba/blob/main/mamba_ssm/ops/triton/layernorm_gated.py; Yang and Zhang,
    https://github.com/fla-org/flash-linear-attention/blob/main/fla/modules/fused_norm_gate.py
    """
    check_gate(act)
    dtype = check_out_dtype(out_dtype) or input.dtype
    group_size = _check_shapes(input, gate, weight, bias, group_size)
    if eps is None:
        eps = torch.finfo(compute_dtype(input.dtype)).eps
    if rms_norm_gated_reason(input, gate, weight, bias, group_size, eps, dtype):
        return _composed(input, gate, weight, bias, eps, group_size, norm_before_gate, act, out_dtype)
    return _rms_norm_gated(input, gate, weight, bias, group_size, bool(norm_before_gate), act, eps, dtype)


def _composed(
    input: Tensor,
    gate: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    act: str,
    out_dtype: torch.dtype | None,
) -> Tensor:
    """y, by `rms_norm` and torch's operators."""
    cols = input.shape[-1]
    if gate is None and bias is None and group_size == cols:
        return rms_norm(input, (cols,), weight, eps, out_dtype=out_dtype).to(out_dtype or input.dtype)
    y = input.to(compute_dtype(input.dtype))
    activation = IN_TORCH[act]
    factor = None if gate is None else activation(gate.to(y.dtype))
    if factor is not None and not norm_before_gate:
        y = y * factor
    groups = cols // group_size if cols else 1
    y = rms_norm(y.unflatten(-1, (groups, group_size)), (group_size,), eps=eps).flatten(-2)
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    if factor is not None and norm_before_gate:
        y = y * factor
    return y.to(out_dtype or input.dtype)


def check_gate(act: Any) -> None:
    if act not in GATES:
        remedy = "pass silu, which is swish" if act == "swish" else "apply another one to the gate yourself"
        raise ValueError(f"expected act to be one of {', '.join(GATES)}, got {act!r}: {remedy}")


def check_group_size(group_size: Any, cols: int) -> None:
    if not isinstance(group_size, int) or group_size < 1 or cols % group_size:
        raise ValueError(
            f"expected a group_size that divides {cols}, the size of a row, got {group_size!r}: pass the "
            f"size of a group, not the number of groups, or None for the whole row"
        )


def _check_shapes(input: Tensor, gate: Any, weight: Any, bias: Any, group_size: int | None) -> int:
    """The size of a group."""
    if input.dim() == 0:
        raise ValueError("expected an input of (*, C), got one without dimensions: pass input[None]")
    cols = input.shape[-1]
    if gate is not None and getattr(gate, "shape", None) != input.shape:
        got = tuple(gate.shape) if isinstance(gate, Tensor) else repr(gate)
        raise ValueError(
            f"expected a gate of the input's shape {tuple(input.shape)}, got {got}: reshape or expand it"
        )
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and getattr(parameter, "shape", None) != (cols,):
            got = tuple(parameter.shape) if isinstance(parameter, Tensor) else repr(parameter)
            raise ValueError(
                f"expected a {name} of shape ({cols},), one value for each element of a row, got {got}: pass "
                f"one of the whole row, also where it is normalised in groups"
            )
    if group_size is None:
        return cols
    check_group_size(group_size, cols)
    return group_size
