import torch
from torch import Tensor

from normreg import functional


class LayerNorm(torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` on `normreg.functional.layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
