from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.types import Device

from normreg import functional
from normreg.functional.tracing import leaf
from normreg.nn.arguments import OutDtype


@leaf
class RMSNorm(OutDtype, torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` on `normreg.functional.rms_norm`, whose out_dtype it takes as well.

    With out_dtype=torch.float8_e4m3fn a call returns (y8, scale), for inference.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        shape: Any = normalized_shape  # torch says list, and takes any sequence
        super().__init__(shape, eps, elementwise_affine, device, dtype)
        self._set_out_dtype(out_dtype, may_be_float8=True)

    def forward(self, x: Tensor) -> Tensor:
        try:  # without the call of __getattr__
            weight = self._parameters["weight"]
        except KeyError:
            weight = self.weight
        return functional.rms_norm(x, self.normalized_shape, weight, self.eps, out_dtype=self.out_dtype)
