"""What `bench smoke` computes: a problem of an operation, and what draws its tensors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Problem:
    inputs: list  # tensors that are differentiated
    ours: Callable  # of the inputs: y, or a tuple of results
    theirs: Callable  # the same in torch's operations, in whatever dtype the inputs have
    draws: bool = False  # ours takes a seed from torch's generator


@dataclass
class Maker:
    device: str
    dtype: torch.dtype

    def __call__(self, *shape):
        return torch.randn(shape, device=self.device, dtype=torch.float64).to(self.dtype)

    def image(self, shape, last):
        x = self(*shape)
        return x.to(memory_format=torch.channels_last) if last else x
