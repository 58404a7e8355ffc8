"""The dtype of a norm's result, where it is asked for: by `out_dtype=`, or by `autocast_output`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normreg.functional import dispatch
from normreg.kernels.dtypes import FLOAT8, FLOATING


class autocast_output:
    """Says of which dtype the results of norms are under autocast: "torch", the default, or "input".

    On a GPU torch computes `layer_norm`, `group_norm` and, since torch 2.12, `rms_norm` of 16 bits in float32
    under autocast, and their results stay float32, which the next layer casts back. With "input" a result has
    the input's dtype; what is computed with is float32 either way.

    A call changes it from then on, for all threads; in a with statement it is what it was before afterwards::

        with torch.autocast("cuda", torch.bfloat16), normreg.autocast_output("input"):
            loss = model(x)

    Raises ValueError for another kind. Source: https://github.com/pytorch/pytorch/issues/188955
    """

    def __init__(self, kind: str) -> None:
        if kind not in ("torch", "input"):
            raise ValueError(
                f"expected 'input' or 'torch', got {kind!r}: pass 'input' for results of the input's dtype, "
                f"'torch' for those of torch's norms"
            )
        self.before = dispatch.AUTOCAST_OUTPUT
        dispatch.AUTOCAST_OUTPUT = kind

    def __enter__(self) -> "autocast_output":
        return self

    def __exit__(self, *_: Any) -> None:
        dispatch.AUTOCAST_OUTPUT = self.before


def check_out_dtype(out_dtype: Any, scale: Any = None) -> torch.dtype | None:
    """The dtype of a result that is no pair; raises ValueError for another, and for a scale beside it."""
    if out_dtype == FLOAT8:
        raise ValueError(
            f"expected out_dtype to be one of {', '.join(map(str, FLOATING))} or None, got {FLOAT8}, "
            f"which layer_norm and rms_norm take, without a residual: add that before"
        )
    if out_dtype is not None and out_dtype not in FLOATING:
        raise ValueError(
            f"expected out_dtype to be one of {', '.join(map(str, FLOATING))} or None, got {out_dtype!r}: "
            f"pass None for the dtype that torch's result has"
        )
    if scale is not None:
        raise ValueError(
            f"expected no scale with out_dtype={out_dtype}, got one: pass out_dtype={FLOAT8}, of whose "
            f"result it is the scale"
        )
    return out_dtype


def asked_dtype(x: Any, out_dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype that a result is to have; None for that of torch's."""
    if out_dtype is None and dispatch.AUTOCAST_OUTPUT == "input" and isinstance(x, Tensor):
        return x.dtype if x.is_floating_point() and torch.is_autocast_enabled(x.device.type) else None
    return check_out_dtype(out_dtype)


def rounded_to(norm: Callable[..., Tensor], dtype: torch.dtype | None) -> Callable[..., Tensor]:
    """The function with a result in `dtype`: computed in the widest dtype it is given, and rounded once.

    norm: a function (x, shape or groups, *parameters, eps). It is returned itself where dtype is None.
    """
    if dtype is None:
        return norm

    def call(x: Tensor, of: Any, *parameters_and_eps: Any) -> Tensor:
        *parameters, eps = parameters_and_eps
        wide = dtype
        for tensor in (x, *parameters):
            wide = wide if tensor is None else torch.promote_types(wide, tensor.dtype)
        parameters = [None if tensor is None else tensor.to(wide) for tensor in parameters]
        return norm(x.to(wide), of, *parameters, eps).to(dtype)

    return call
