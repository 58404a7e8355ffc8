"""Batch normalisation over the batches of all ranks of a process group of torch.distributed."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normreg.distributed.groups import check_device, group_of
from normreg.functional import dispatch
from normreg.functional.residual import check_can_be_added
from normreg.kernels.dtypes import FLOATING
from normreg.ops import sync_batch_norm as _sync_batch_norm
from normreg.ops.activations import check_activation


@dispatch.decision("sync_batch_norm")
def sync_batch_norm_reason(
    x: Any, residual: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any
) -> str | None:
    """Decides for tensors that `_check_tensors` has passed. An empty batch is like any other."""
    statistics = running_mean, running_var
    reason = (
        dispatch.tensor_reason(x, (weight, bias, *statistics, residual), may_be_empty=True)
        or dispatch.channel_dtypes_reason(x, weight, bias, *statistics)
        or dispatch.running_reason(*statistics)
    )
    if reason:
        return reason
    if residual is not None and (residual.dtype != x.dtype or residual.layout is not torch.strided):
        return "the residual is no strided tensor of the input's dtype"
    return None


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    process_group: Any = None,
    act: str | None = None,
    residual: Tensor | None = None,
    negative_slope: float = 0.01,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    r"""`batch_norm_act` in training, with mean and variance of the batches of all ranks together.

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual), as if the ranks' batches were one. Every
    rank calls it, with a batch of any size, even an empty one. A forward is one all_gather of 3 numbers a
    channel and 2 more, in float32, or in float64 for float64. All ranks merge the statistics in the order of
    the ranks, so mean, variance and running statistics are the same bits on each. A backward is one
    all_reduce of 2 numbers a channel. Gradients of weight and bias are those of the rank's own batch:
    DistributedDataParallel averages them. Nothing waits for a GPU.

    Args:
        input: (N, C) or (N, C, *), N may be 0; float16, bfloat16, float32 or float64, any strides.
        running_mean, running_var, weight, bias, momentum, eps, num_batches_tracked: those of `batch_norm`.
        process_group: a torch.distributed.ProcessGroup, or None for all ranks.
        act, residual, negative_slope: those of `batch_norm_act`; by default there is no activation.

    Returns a tensor of input's shape and dtype, channels-last where input is, else contiguous. Where the
    kernels do not apply (`normreg.functional.dispatch`), as on a CPU, torch's operations compute the same.

    Raises RuntimeError where there is no process group, ValueError for tensors on a device that its backend
    does not serve, for a rank outside of it, wrong shapes and another act, TypeError for a DTensor and for
    other dtypes; and torch.distributed's own error, after the timeout of the process group, where a rank does
    not take part.

    Equivalent: `batch_norm_act` of `torch.cat` of all inputs. Where there is one value a channel in all,
    running_var becomes nan, as torch's does.

    Sources: Chan, Golub and LeVeque (1979); Peng et al., "MegDet" (2017), arXiv 1711.07240;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.SyncBatchNorm.html
    """
    check_activation(act, negative_slope)
    group = group_of(process_group)
    _check_tensors(input, residual, running_mean, running_var, weight, bias)
    if not torch.compiler.is_compiling():
        check_device(input, group)
    by_kernels = not sync_batch_norm_reason(input, residual, running_mean, running_var, weight, bias)
    ranks = group.group_name, dist.get_world_size(group)
    buffers = running_mean, running_var, num_batches_tracked
    return _sync_batch_norm.sync_batch_norm(
        input, weight, bias, residual, act, negative_slope, eps, *ranks, by_kernels, *buffers, momentum
    )


def _check_tensors(
    input: Tensor, residual: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any
) -> None:
    tensors = dict(weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    if residual is not None:
        check_can_be_added(residual)
    for name, tensor in dict(input=input, residual=residual, **tensors).items():
        if dist.is_available() and type(tensor).__name__ == "DTensor":
            raise TypeError(
                f"expected a plain tensor as {name}, got a DTensor: pass its to_local() and the "
                "process group of the mesh dimension that it is sharded over"
            )
    if input.dim() < 2:
        raise ValueError(f"expected at least 2D input, got {input.dim()}D: pass (N, C) or (N, C, *)")
    if input.dtype not in FLOATING:
        raise TypeError(f"expected a floating-point input, got {input.dtype}: convert it")
    if (running_mean is None) != (running_var is None):
        raise ValueError("expected both running statistics or neither, got one: pass the other, too")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != (input.shape[1],):
            raise ValueError(
                f"expected {input.shape[1]} elements of {name}, one a channel of the input, got shape "
                f"{tuple(tensor.shape)}: give the layer num_features={input.shape[1]}"
            )
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"expected {name} on {input.device}, got it on {tensor.device}: move the layer")
    if residual is not None and (residual.shape, residual.device) != (input.shape, input.device):
        raise ValueError(
            f"expected a residual like the input, {tuple(input.shape)} on {input.device}, got "
            f"{tuple(residual.shape)} on {residual.device}: add it yourself where it is to be broadcast"
        )
