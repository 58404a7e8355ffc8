from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.types import Device

from normreg import functional
from normreg.functional.tracing import leaf
from normreg.nn.arguments import OutDtype


@leaf
class LayerNorm(OutDtype, torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` on `normreg.functional.layer_norm`, whose out_dtype it takes as well.

    With out_dtype=torch.float8_e4m3fn a call returns (y8, scale), for inference.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        shape: Any = normalized_shape  # torch says list, and takes any sequence
        super().__init__(shape, eps, elementwise_affine, bias, device, dtype)
        self._set_out_dtype(out_dtype, may_be_float8=True)

    def forward(self, input: Tensor) -> Tensor:
        own = self._parameters
        try:  # without the calls of __getattr__
            weight, bias = own["weight"], own["bias"]
        except KeyError:
            weight, bias = self.weight, self.bias
        return functional.layer_norm(
            input, self.normalized_shape, weight, bias, self.eps, out_dtype=self.out_dtype
        )
