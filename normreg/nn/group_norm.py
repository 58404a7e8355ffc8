import torch
from torch import Tensor

from normreg import functional


class GroupNorm(torch.nn.GroupNorm):
    """`torch.nn.GroupNorm` on `normreg.functional.group_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
