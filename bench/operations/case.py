"""What is measured: an operation, and a case of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16, "fp64": torch.float64}
SHORT = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Case:
    operation: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    channels_last: bool = False
    training: bool = True
    origin: str = ""  # where the shape occurs

    def __str__(self):
        words = [self.operation, SHORT[self.dtype], "x".join(map(str, self.shape))]
        words += ["channels_last"] * self.channels_last + ["evaluation"] * (not self.training)
        return " ".join(words)

    @property
    def bytes(self):
        """Of a tensor of the input's shape."""
        return math.prod(self.shape) * self.dtype.itemsize

    def like_input(self, make, device, dtype=None):
        """A tensor of the input's shape and memory format, by `make`: torch.empty, torch.randn, ..."""
        tensor = make(self.shape, device=device, dtype=dtype or self.dtype)
        return tensor.to(memory_format=torch.channels_last) if self.channels_last else tensor


@dataclass(frozen=True)
class Operation:
    name: str
    layer: Callable  # (torch.nn or normreg, case, **options of device and dtype) -> the layer in its mode
    passes: dict  # direction -> how many tensors of the input's size it moves at least
    ledger: tuple[Case, ...]
    static: tuple[Case, ...]
    host: tuple[Case, ...]
    speed: tuple[Case, ...]

    def least_bytes(self, case, direction):
        """What any implementation moves: every tensor of the input's size once; parameters are left out."""
        return self.passes[direction] * case.bytes
