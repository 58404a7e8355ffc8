"""Trains a CNN with SyncBatchNorm under DistributedDataParallel, and the same
CNN of torch.nn in one process.

Each process has its part of every batch; statistics are those of all parts,
so that parameters and running statistics are those of one process with the
whole batch. Rank 0 trains that one, too, and compares.

    torchrun --nproc-per-node=2 ddp_sync_batch_norm.py  # NCCL, or gloo on a CPU
"""

import copy
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import normreg

STEPS, BATCH = 5, 16  # samples of all processes together


def network():
    stem = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()
    body = nn.Conv2d(8, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    return nn.Sequential(*stem, *body, *head)


def trained(model, images, labels):
    """The loss of each step."""
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), []
    for x, y in zip(images, labels):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def main():
    rank, ranks = dist.get_rank(), dist.get_world_size()
    on_gpus = dist.get_backend() == "nccl"
    device = torch.device("cuda" if on_gpus else "cpu")  # cuda: the current one
    torch.manual_seed(0)  # the same weights and data everywhere
    model = network().to(device)
    images = torch.randn(STEPS, BATCH, 3, 12, 12, device=device)
    labels = torch.randint(10, (STEPS, BATCH), device=device)

    ours = normreg.convert_sync_batchnorm(copy.deepcopy(model))
    ours = nn.parallel.DistributedDataParallel(ours)
    here = [whole.chunk(ranks, dim=1)[rank] for whole in (images, labels)]
    explanation = normreg.explain(ours, here[0][0])  # on every rank: which path runs
    losses = trained(ours, *here)
    dist.all_reduce(losses)  # the mean of the parts' is the loss of the whole batch
    if rank > 0:
        return
    whole = trained(model, images, labels)
    print(explanation)
    print(f"\n{ranks} processes, {dist.get_backend()}")
    print("step  normreg, all ranks  torch.nn, one process")
    for step, (one, other) in enumerate(zip(losses / ranks, whole), 1):
        print(f"{step:4}  {one:18.6f}  {other:21.6f}")
    for kind, these, those in (
        ("parameters", ours.module.parameters(), model.parameters()),
        ("running statistics", ours.module.buffers(), model.buffers()),
    ):
        differences = [(one - other).abs().max() for one, other in zip(these, those)]
        print(f"largest difference of {kind}: {max(differences).item():.1e}")
    model.load_state_dict(ours.module.state_dict())  # the checkpoint is torch.nn's


if __name__ == "__main__":
    on_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    dist.init_process_group("nccl" if on_gpus else "gloo")
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    main()  # no model outlives it, which would wait for the process group
    dist.destroy_process_group()
