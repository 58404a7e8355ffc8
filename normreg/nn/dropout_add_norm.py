from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.types import Device

from normreg import functional
from normreg.functional.tracing import leaf
from normreg.nn.arguments import OutDtype, instead, probability

NAMES_OF_P = dict(dropout="pass p={}", drop_prob="pass p={}", dropout_p="pass p={}")


class _DropoutAddNorm(OutDtype, torch.nn.Module):
    """What dropout and the sum with a residual add to a norm of torch.nn: a base beside that norm."""

    normalized_shape: tuple[int, ...]
    eps: Any
    layer_scale: torch.nn.Parameter | None

    def _add_dropout(
        self, p: float, prenorm: bool, residual_in_fp32: bool, layer_scale: float | None, **like: Any
    ) -> None:
        self.p = probability("p", p)
        self.prenorm, self.residual_in_fp32 = prenorm, residual_in_fp32
        self.initial_layer_scale: Any = layer_scale
        value = None
        if layer_scale is not None:
            value = torch.nn.Parameter(torch.full(self.normalized_shape, float(layer_scale), **like))
        self.register_parameter("layer_scale", value)

    def reset_parameters(self) -> None:
        super().reset_parameters()  # type: ignore[misc]  # the norm's
        layer_scale = getattr(self, "layer_scale", None)  # which is missing while the norm is constructed
        if layer_scale is not None:
            torch.nn.init.constant_(layer_scale, self.initial_layer_scale)

    def _options(self, row_scale: Tensor | None) -> dict[str, Any]:
        return dict(
            p=self.p,
            training=self.training,
            eps=self.eps,
            prenorm=self.prenorm,
            residual_in_fp32=self.residual_in_fp32,
            row_scale=row_scale,
            layer_scale=self.layer_scale,
            out_dtype=self.out_dtype,
        )

    def extra_repr(self) -> str:
        words = [super().extra_repr(), f"p={self.p}"]
        words += [f"{name}=True" for name in ("prenorm", "residual_in_fp32") if getattr(self, name)]
        if self.layer_scale is not None:
            words.append(f"layer_scale={self.initial_layer_scale}")
        return ", ".join(words)


@leaf
class DropoutAddLayerNorm(_DropoutAddNorm, torch.nn.LayerNorm):
    """`normreg.functional.dropout_add_layer_norm`: LayerNorm behind dropout and the sum with a residual.

    Args:
        normalized_shape, eps, elementwise_affine, bias, device, dtype: those of torch.nn.LayerNorm, whose
            state_dict this has as well.
        p: probability that an element becomes zero, in [0, 1].
        prenorm: return the sum as well, the residual of the next block.
        residual_in_fp32: the sum is float32 beside 16 bits.
        layer_scale: the first value of a parameter that multiplies the branch; None for no such parameter.
        out_dtype: that of y, as in `normreg.functional.layer_norm`.

    All but normalized_shape are passed by name: a second number could be meant as eps or as p, and raises
    TypeError.

    `forward` takes the branch, the residual or None for 0, and row_scale, which multiplies rows or samples.

    Equivalent::

        z = residual + dropout(x) * row_scale[:, None] * layer_scale
        y = layer_norm(z)    # with prenorm: y, z
    """

    @instead(**NAMES_OF_P, affine="pass elementwise_affine={}")
    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        *,
        p: float = 0.5,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
        layer_scale: float | None = None,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        shape: Any = normalized_shape  # torch says list, and takes any sequence
        torch.nn.LayerNorm.__init__(self, shape, eps, elementwise_affine, bias, device, dtype)
        self._add_dropout(p, prenorm, residual_in_fp32, layer_scale, device=device, dtype=dtype)
        self._set_out_dtype(out_dtype)

    def forward(
        self, input: Tensor, residual: Tensor | None = None, row_scale: Tensor | None = None
    ) -> Tensor | Any:
        parameters = self.normalized_shape, self.weight, self.bias
        options = self._options(row_scale)
        return functional.dropout_add_layer_norm(input, residual, *parameters, **options)


@leaf
class DropoutAddRMSNorm(_DropoutAddNorm, torch.nn.RMSNorm):
    """`normreg.functional.dropout_add_rms_norm`: RMSNorm behind dropout and the sum with a residual.

    Args:
        normalized_shape, eps, elementwise_affine, device, dtype: those of torch.nn.RMSNorm, whose state_dict
            this has as well.
        p, prenorm, residual_in_fp32, layer_scale, out_dtype: those of `DropoutAddLayerNorm`, passed by name.

    Equivalent::

        z = residual + dropout(x) * row_scale[:, None] * layer_scale
        y = rms_norm(z)    # with prenorm: y, z
    """

    @instead(
        **NAMES_OF_P,
        affine="pass elementwise_affine={}",
        bias="leave it out, an RMSNorm has none",
    )
    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        *,
        p: float = 0.5,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
        layer_scale: float | None = None,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        shape: Any = normalized_shape  # torch says list, and takes any sequence
        torch.nn.RMSNorm.__init__(self, shape, eps, elementwise_affine, device, dtype)
        self._add_dropout(p, prenorm, residual_in_fp32, layer_scale, device=device, dtype=dtype)
        self._set_out_dtype(out_dtype)

    def forward(
        self, input: Tensor, residual: Tensor | None = None, row_scale: Tensor | None = None
    ) -> Tensor | Any:
        parameters = self.normalized_shape, self.weight
        options = self._options(row_scale)
        return functional.dropout_add_rms_norm(input, residual, *parameters, **options)
