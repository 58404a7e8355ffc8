from typing import Any

import torch
from torch import Tensor
from torch.types import Device

from normreg import functional
from normreg.functional.tracing import leaf
from normreg.nn.arguments import OutDtype, check_dimensions, instead
from normreg.nn.layer_norm_channels import OF_TIMMS


@leaf
class RMSNorm2d(OutDtype, torch.nn.RMSNorm):
    """RMSNorm over the channels of an (N, C, H, W) input: `normreg.functional.rms_norm_channels`.

    The constructor and the parameters are those of timm's RmsNorm2d.

    Args:
        num_channels: C, the number of channels.
        eps: added to the mean square.
        affine: whether the layer has a weight.
        out_dtype: that of `normreg.functional.rms_norm_channels`.
    """

    @instead(**OF_TIMMS, bias="leave it out, RMSNorm has none", channels="pass num_channels={}")
    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        affine: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        shape: Any = num_channels  # torch's annotation has no int
        super().__init__(shape, eps, affine, device, dtype)
        self._set_out_dtype(out_dtype)

    def forward(self, x: Tensor) -> Tensor:
        check_dimensions(self, x, 4, "RMSNorm")
        return functional.rms_norm_channels(x, self.weight, self.eps, out_dtype=self.out_dtype)
