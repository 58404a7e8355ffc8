import torch
from torch import Tensor

from normreg import functional


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` on `normreg.functional.rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)
