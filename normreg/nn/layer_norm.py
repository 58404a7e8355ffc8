import torch
from torch import Tensor

from normreg import functional
from normreg.functional.tracing import leaf


@leaf
class LayerNorm(torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` on `normreg.functional.layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        own = self._parameters
        try:  # without the calls of __getattr__
            weight, bias = own["weight"], own["bias"]
        except KeyError:
            weight, bias = self.weight, self.bias
        return functional.layer_norm(input, self.normalized_shape, weight, bias, self.eps)
