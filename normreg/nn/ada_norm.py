from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.types import Device

from normreg import functional
from normreg.functional.tracing import leaf
from normreg.nn.arguments import OutDtype, instead


class _AdaNorm(OutDtype, torch.nn.Module):
    """What modulation and the gated sum add to a norm of torch.nn: a base beside that norm."""

    eps: Any
    prenorm: bool
    _function: ClassVar[Callable[..., Tensor | Any]]
    _own: ClassVar[tuple[str, ...]]  # names of the function's parameters

    def _set(self, prenorm: bool, out_dtype: torch.dtype | None) -> None:
        self.prenorm = prenorm
        self._set_out_dtype(out_dtype)

    def forward(
        self,
        input: Tensor,
        scale: Tensor,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> Tensor | Any:
        own = [getattr(self, name) for name in self._own]
        options = dict(prenorm=self.prenorm, out_dtype=self.out_dtype)
        return self._function(input, scale, shift, *own, self.eps, residual=residual, gate=gate, **options)

    def extra_repr(self) -> str:
        words: list[str] = [super().extra_repr()]
        return ", ".join([*words, *["prenorm=True"] * self.prenorm])


@leaf
class AdaLayerNorm(_AdaNorm, torch.nn.LayerNorm):  # type: ignore[misc]  # forward takes more
    """`normreg.functional.ada_layer_norm`: LayerNorm with a scale and shift of each sample or row.

    Args:
        normalized_shape: the size of the last dimension.
        eps, elementwise_affine, bias, device, dtype: those of torch.nn.LayerNorm, whose state_dict this has
            as well. There are no parameters unless elementwise_affine is True.
        prenorm: return the sum as well, the residual of the next one.
        out_dtype: that of the function.

    `forward` takes the input and its modulations: scale, shift or None, and for the end of a block the
    residual and gate or None. The layer that makes modulations of a condition is the caller's.

    Equivalent::

        z = residual + gate[:, None] * x
        y = layer_norm(z) * (1 + scale[:, None]) + shift[:, None]    # with prenorm: y, z
    """

    _function = staticmethod(functional.ada_layer_norm)
    _own = "weight", "bias"

    @instead(affine="pass elementwise_affine={}")
    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-6,
        elementwise_affine: bool = False,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        prenorm: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        torch.nn.LayerNorm.__init__(self, normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self._set(prenorm, out_dtype)


@leaf
class AdaRMSNorm(_AdaNorm, torch.nn.RMSNorm):  # type: ignore[misc]  # forward takes more
    """`normreg.functional.ada_rms_norm`: RMSNorm with a scale and shift of each sample or row.

    Args:
        normalized_shape, prenorm, out_dtype: those of `AdaLayerNorm`, as are the arguments of `forward`.
        eps, elementwise_affine, device, dtype: those of torch.nn.RMSNorm, whose state_dict this has as well.
            There is no weight unless elementwise_affine is True.

    Equivalent::

        z = residual + gate[:, None] * x
        y = rms_norm(z) * (1 + scale[:, None]) + shift[:, None]    # with prenorm: y, z
    """

    _function = staticmethod(functional.ada_rms_norm)
    _own = ("weight",)

    @instead(affine="pass elementwise_affine={}", bias="leave it out, an RMSNorm has none")
    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-6,
        elementwise_affine: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        prenorm: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        shape: Any = normalized_shape
        torch.nn.RMSNorm.__init__(self, shape, eps, elementwise_affine, device, dtype)
        self._set(prenorm, out_dtype)
