import torch
from torch import Tensor
from torch.types import Device

from normreg import functional
from normreg.functional.tracing import leaf
from normreg.nn.arguments import OutDtype, bias_option


@leaf
class GroupNorm(OutDtype, torch.nn.GroupNorm):
    """`torch.nn.GroupNorm` on `normreg.functional.group_norm`, whose out_dtype it takes as well.

    bias: where this torch has it.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, **bias_option(bias))
        self._set_out_dtype(out_dtype)

    def forward(self, input: Tensor) -> Tensor:
        own = self._parameters
        try:  # without the calls of __getattr__
            weight, bias = own["weight"], own["bias"]
        except KeyError:
            weight, bias = self.weight, self.bias
        return functional.group_norm(input, self.num_groups, weight, bias, self.eps, out_dtype=self.out_dtype)
