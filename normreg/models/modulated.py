"""Modulates a norm that a layer of another library holds, in one call where it may be one."""

from typing import Any

from torch import Tensor

from normreg import functional
from normreg.models.hooks import is_listened_to
from normreg.models.naming import path_of
from normreg.models.registry import original, same_dtype

FAMILY = "diffusers.models.normalization"
LAYER_NORMS = {"torch.nn.modules.normalization.LayerNorm", f"{FAMILY}.FP32LayerNorm", f"{FAMILY}.LayerNorm"}
RMS_NORMS = {"torch.nn.modules.normalization.RMSNorm", f"{FAMILY}.RMSNorm"}


def modulated(norm: Any, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """norm(x) * (1 + scale) + shift, in one call where nobody listens to the norm's own.

    scale, shift: (B, C) or as they broadcast with x.
    """
    cls = path_of(original(type(norm)) or type(norm))
    vectors = [m for m in (scale, shift, norm.weight, getattr(norm, "bias", None)) if m is not None]
    fits = all(_fits(x, m) for m in (scale, shift) if m is not None)
    bypassed = fits and not is_listened_to(norm) and same_dtype(x, *vectors)
    if bypassed and cls in LAYER_NORMS:
        return functional.ada_layer_norm(x, scale, shift, norm.weight, norm.bias, norm.eps)
    if bypassed and cls in RMS_NORMS and norm.eps is not None and getattr(norm, "bias", None) is None:
        return functional.ada_rms_norm(x, scale, shift, norm.weight, norm.eps)
    y: Tensor = norm(x) * (1 + _beside(x, scale))
    return y if shift is None else y + _beside(x, shift)


def _fits(x: Tensor, m: Tensor) -> bool:
    """Whether a modulation is of samples, of rows or for all."""
    leading = m.shape[:-1]
    of_samples = m.dim() in (2, x.dim()) and leading[:1] == x.shape[:1] and leading.numel() == leading[0]
    return m.shape == x.shape or (m.shape[-1:] == x.shape[-1:] and (of_samples or leading.numel() == 1))


def _beside(x: Tensor, m: Tensor) -> Tensor:
    """A modulation as it broadcasts with x."""
    return m[:, None] if m.dim() == 2 < x.dim() else m
