import torch
from torch import Tensor
from torch.nn.modules.instancenorm import _InstanceNorm

from normreg import functional
from normreg.functional.tracing import leaf


class _InstanceNormForward(_InstanceNorm):
    """torch's forward, with its checks and warnings, around normreg's function."""

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
        )


@leaf
class InstanceNorm1d(_InstanceNormForward, torch.nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d` on `normreg.functional.instance_norm`."""


@leaf
class InstanceNorm2d(_InstanceNormForward, torch.nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` on `normreg.functional.instance_norm`."""


@leaf
class InstanceNorm3d(_InstanceNormForward, torch.nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` on `normreg.functional.instance_norm`."""
