"""Batch normalisation over the batches of all ranks of a process group of torch.distributed."""

import torch
import torch.distributed as dist

from normreg.functional import dispatch
from normreg.ops import sync_batch_norm as _sync_batch_norm
from normreg.ops.activations import check_activation


def sync_batch_norm(
    input, running_mean, running_var, weight=None, bias=None, momentum=0.1, eps=1e-5,
    *, process_group=None, act=None, residual=None, negative_slope=0.01, num_batches_tracked=None,
):  # fmt: skip
    r"""`batch_norm_act` in training, with mean and variance of the batches of all ranks together.

    y = act((x - mean) / sqrt(var + eps) * weight + bias + residual), as if the ranks' batches were one. Every
    rank calls it, with batches of any size; some may be empty. A forward is one all_gather of 3 numbers a
    channel and 2 more, float32 or, for float64, float64; the ranks' statistics are merged in their order, so
    that mean, variance and running statistics are the same bits on every rank. A backward is one all_reduce
    of 2 numbers a channel. Gradients of weight and bias are those of the rank's own batch:
    DistributedDataParallel averages them. Nothing waits for a GPU.

    Args:
        input: (N, C) or (N, C, *), N may be 0; float16, bfloat16, float32 or float64, any strides.
        running_mean, running_var, weight, bias, momentum, eps, num_batches_tracked: those of `batch_norm`.
        process_group: None for all ranks.
        act, residual, negative_slope: those of `batch_norm_act`, without an activation by default.

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
    check_activation(act)
    group = group_of(process_group)
    _check_tensors(input, residual, running_mean, running_var, weight, bias)
    if not torch.compiler.is_compiling():
        check_device(input, group)
    by_kernels = not dispatch.sync_batch_norm(input, residual, running_mean, running_var, weight, bias)
    return _sync_batch_norm.sync_batch_norm(
        input, weight, bias, residual, act, negative_slope, eps, group.group_name,
        dist.get_world_size(group), by_kernels, running_mean, running_var, num_batches_tracked, momentum,
    )  # fmt: skip


def group_of(process_group):
    """The process group itself, of all ranks for None."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "expected an initialized torch.distributed, got no process group: call "
            "torch.distributed.init_process_group on every rank, or use BatchNorm"
        )
    if process_group is None:
        return dist.group.WORLD
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            "expected a process group of this rank, got one it is not in: pass each rank its own group"
        )
    return process_group


def check_device(input, group):
    served = {device.type for device in group._device_types}
    if input.device.type not in served:
        raise ValueError(
            f"expected a tensor on {' or '.join(sorted(served))}, where the process group's backend "
            f"{dist.get_backend(group)!r} works, got one on {input.device}: move the model and its input "
            "there, or make a group with another backend, gloo for CPU tensors"
        )


def check_ranks_agree(input, group):
    """Raises ValueError on every rank unless all have as many channels and the same dtype. Waits for them."""
    mine = f"{input.shape[1]} channels of {input.dtype}"
    all_ranks = [None] * dist.get_world_size(group)
    with torch.cuda.device(input.device if input.is_cuda else -1):
        dist.all_gather_object(all_ranks, mine, group)
    if len(set(all_ranks)) > 1:
        got = ", ".join(f"rank {rank} of the group {what}" for rank, what in enumerate(all_ranks))
        raise ValueError(
            f"expected as many channels and the same dtype on every rank, got {got}: "
            "give all ranks the same model, and the same autocast"
        )


def _check_tensors(input, residual, running_mean, running_var, weight, bias):
    tensors = dict(weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    for name, tensor in dict(input=input, residual=residual, **tensors).items():
        if dist.is_available() and type(tensor).__name__ == "DTensor":
            raise TypeError(
                f"expected a plain tensor as {name}, got a DTensor: pass its to_local() and the "
                "process group of the mesh dimension that it is sharded over"
            )
    if input.dim() < 2:
        raise ValueError(f"expected at least 2D input, got {input.dim()}D: pass (N, C) or (N, C, *)")
    if input.dtype not in dispatch.FLOATING:
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
