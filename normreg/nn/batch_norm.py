from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from normreg import functional
from normreg.functional.tracing import leaf


def found(layer: _BatchNorm, tensors: Mapping[str, Tensor | None], name: str) -> Tensor | None:
    """A parameter or buffer, without the call of __getattr__ where it is in its place among `tensors`."""
    tensor: Tensor | None = tensors[name] if name in tensors else getattr(layer, name)
    return tensor


def call_batch_norm(
    layer: _BatchNorm, batch_norm: Callable[..., Tensor], input: Tensor, **options: Any
) -> Tensor:
    """Calls `batch_norm` by torch's truth table: which statistics are used, and which are updated."""
    layer._check_input_dim(input)
    own, buffers = layer._parameters, layer._buffers
    training, momentum = bool(layer.training), layer.momentum
    update = training and layer.track_running_stats
    use_running = update or not training
    running_mean = found(layer, buffers, "running_mean") if use_running else None
    running_var = found(layer, buffers, "running_var") if use_running else None
    tracked = found(layer, buffers, "num_batches_tracked") if update else None
    return batch_norm(
        input,
        running_mean,
        running_var,
        found(layer, own, "weight"),
        found(layer, own, "bias"),
        training=training or (running_mean is None and running_var is None),
        momentum=0.0 if momentum is None and tracked is None else momentum,
        eps=layer.eps,
        num_batches_tracked=tracked,
        **options,
    )


class _BatchNormForward(_BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        return self._normalized(input, functional.batch_norm)

    def _normalized(self, input: Tensor, batch_norm: Callable[..., Tensor], **options: Any) -> Tensor:
        """Calls `batch_norm`, the function for one rank, as this layer is set. SyncBatchNorm does more."""
        return call_batch_norm(self, batch_norm, input, **options)


@leaf
class BatchNorm1d(_BatchNormForward, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` on `normreg.functional.batch_norm`."""


@leaf
class BatchNorm2d(_BatchNormForward, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` on `normreg.functional.batch_norm`."""


@leaf
class BatchNorm3d(_BatchNormForward, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` on `normreg.functional.batch_norm`."""
