from typing import Any

import torch
from torch import Tensor
from torch.types import Device

from normreg import functional
from normreg.functional.tracing import leaf
from normreg.nn.arguments import OF_ACTIVATIONS, activation_repr, bias_option, check_eps, instead
from normreg.nn.batch_norm import _BatchNormForward
from normreg.ops.activations import check_activation


class _BatchNormAct(_BatchNormForward):
    """torch.nn's BatchNorm with an activation, and a residual before that, in the same launches.

    Args:
        num_features, ..., bias: those of torch.nn's BatchNorm, whose state_dict this has as well; bias
            where this torch has it.
        act, negative_slope: those of `normreg.functional.batch_norm_act`.

    Raises ValueError for another act, TypeError for an eps that is not a number, such as an activation that
    is not passed by name.

    Equivalent::

        y = act(batch_norm(x) + residual)    # the residual is optional

    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` takes it for a BatchNorm without an activation;
    `normreg.convert_sync_batchnorm` does not.
    """

    act: str | None
    negative_slope: float

    @instead(**OF_ACTIVATIONS)
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        act: str | None = "relu",
        negative_slope: float = 0.01,
        bias: bool = True,
    ) -> None:
        check_activation(act, negative_slope)
        check_eps(self, "second", eps, num_features)
        options: dict[str, Any] = dict(device=device, dtype=dtype, **bias_option(bias))
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **options)
        self.act, self.negative_slope = act, negative_slope

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        options = dict(act=self.act, negative_slope=self.negative_slope, residual=residual)
        return self._normalized(input, functional.batch_norm_act, **options)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {activation_repr(self.act, self.negative_slope)}"


@leaf
class BatchNormAct1d(_BatchNormAct, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, residual and activation: `normreg.functional.batch_norm_act`."""


@leaf
class BatchNormAct2d(_BatchNormAct, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, residual and activation: `normreg.functional.batch_norm_act`."""


@leaf
class BatchNormAct3d(_BatchNormAct, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, residual and activation: `normreg.functional.batch_norm_act`."""
