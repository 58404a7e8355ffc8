from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import instancenorm
from torch.types import Device

from normreg import functional
from normreg.functional.norms import check_memory_format
from normreg.functional.tracing import leaf
from normreg.nn.arguments import bias_option


class _InstanceNorm(instancenorm._InstanceNorm):
    """torch's constructor, forward, checks and warnings around normreg's function."""

    memory_format = torch.contiguous_format  # the layer's own where it was given one

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        average: Any = momentum  # torch says float, and takes None for a cumulative average
        options: Any = bias_option(bias)
        super().__init__(num_features, eps, average, affine, track_running_stats, device, dtype, **options)
        if memory_format is not torch.contiguous_format:
            self.memory_format = check_memory_format(memory_format)

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return functional.instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0,
            self.eps,
            memory_format=self.memory_format,
        )

    def extra_repr(self) -> str:
        preserves = self.memory_format is not torch.contiguous_format
        return super().extra_repr() + (f", memory_format={self.memory_format}" if preserves else "")


@leaf
class InstanceNorm1d(_InstanceNorm, torch.nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d` on `normreg.functional.instance_norm`."""


@leaf
class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` on `normreg.functional.instance_norm`, whose memory_format it takes as well.

    torch's result of channels-last input is contiguous, and so is this layer's, also where `normreg.replace`
    has made it. With `torch.preserve_format` it has the strides of `torch.empty_like(x)`, so that a network
    stays channels-last. It is an argument and, of layers that are there, an attribute::

        normreg.replace(model)
        for module in model.modules():
            if isinstance(module, normreg.InstanceNorm2d):
                module.memory_format = torch.preserve_format
    """


@leaf
class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` on `normreg.functional.instance_norm`.

    Its memory_format is that of `InstanceNorm2d`.
    """
