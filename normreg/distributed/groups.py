"""Checks of process groups of torch.distributed, and of what the ranks of a group hand in."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def group_of(process_group: Any) -> Any:
    """Returns the process group itself: that of all ranks for None."""
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
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            f"expected a torch.distributed.ProcessGroup or None for all ranks, got {process_group!r}: make "
            f"one by torch.distributed.new_group(ranks)"
        )
    return process_group


def check_device(input: Tensor, group: Any) -> None:
    """Raises ValueError unless the group's backend serves the input's device."""
    served = {device.type for device in group._device_types}
    if input.device.type not in served:
        raise ValueError(
            f"expected a tensor on {' or '.join(sorted(served))}, where the process group's backend "
            f"{dist.get_backend(group)!r} works, got one on {input.device}: move the model and its input "
            "there, or make a group with another backend, gloo for CPU tensors"
        )


def check_ranks_agree(input: Tensor, group: Any) -> None:
    """Waits for all ranks; raises ValueError on each unless their channel counts and dtypes are equal."""
    mine = f"{input.shape[1]} channels of {input.dtype}"
    all_ranks: list[Any] = [None] * dist.get_world_size(group)
    with torch.cuda.device(input.device if input.is_cuda else -1):
        dist.all_gather_object(all_ranks, mine, group)
    if len(set(all_ranks)) > 1:
        got = ", ".join(f"rank {rank} of the group {what}" for rank, what in enumerate(all_ranks))
        raise ValueError(
            f"expected as many channels and the same dtype on every rank, got {got}: "
            "give all ranks the same model, and the same autocast"
        )
