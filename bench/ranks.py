"""The demo's convolutional network on several ranks, beside torch.nn's on one.

    torchrun --nproc-per-node=2 -m bench ranks

The ranks train it together, on GPUs with NCCL where there are any, else on CPUs with gloo: on
normreg, with SyncBatchNorm, under DistributedDataParallel, each on its part of every batch. Rank 0
then trains torch.nn's network from the same weights on the whole batches. Both compute in float64
and without dropout, so that they may differ by rounding only. The exit status is 1 where they
differ by more.
"""

import argparse
import copy
import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from bench.demo import DEVICE  # first: it makes kernels interpreted where there is no GPU
from bench.harness.requirements import imports_of

with imports_of("bench.ranks"):
    from bench.demo.networks import SIZES, convolutional_network, digits

import normreg
from bench.lab import interpreter

STEPS = 20
BATCH = 128  # samples of all ranks together
LARGEST_DIFFERENCE = 1e-8  # rounding in float64 grows to about 1e-13 over 20 steps


def trained(model, batches):
    """Trains a model on (images, labels) one after the other; returns the losses."""
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), []
    for images, labels in batches:
        loss = F.cross_entropy(model(images.double()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def state_of(model):
    return torch.cat([tensor.detach().double().flatten() for tensor in model.state_dict().values()])


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node=2 -m bench ranks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    if "RANK" not in os.environ:
        parser.error(f"expected torchrun to start it, which tells each process its rank: {parser.prog}")


def main(arguments=None):
    parse_arguments(arguments)
    dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo")
    failed = compare()  # and no model stays: one that outlives the group may wait for gloo forever
    dist.destroy_process_group()
    return failed


def compare():
    """Trains both networks and returns, on rank 0, whether more than rounding tells them apart."""
    on_gpus = DEVICE == "cuda"
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if on_gpus:
        torch.cuda.set_device(rank % torch.cuda.device_count())
    else:
        interpreter.patch_language_once()
        torch.set_num_threads(1)
    torch.manual_seed(0)
    network = convolutional_network(SIZES[DEVICE, True], dropout=0.0).to(DEVICE).double()
    ours = copy.deepcopy(network)
    normreg.replace(ours)
    ours = DistributedDataParallel(normreg.convert_sync_batchnorm(ours))

    (images, labels), _ = digits(0)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1)).to(labels.device)
    share = BATCH // ranks
    parts = [order.roll(-step * BATCH)[:BATCH] for step in range(STEPS)]
    mine = [part[rank * share : (rank + 1) * share] for part in parts]
    losses = trained(ours, [(images[part], labels[part]) for part in mine])
    for loss in losses:
        dist.all_reduce(loss)
    failed = False
    if rank == 0:
        whole = [part[: share * ranks] for part in parts]
        expected = trained(network, [(images[part], labels[part]) for part in whole])
        where = f"{ranks} GPUs" if on_gpus else f"{ranks} processes on a CPU, kernels in Triton's interpreter"
        print(f"{where}; batches of {share * ranks}, {share} a rank")
        print("step   loss of the ranks   loss of torch.nn on one")
        for step in (0, STEPS // 2 - 1, STEPS - 1):
            print(f"{step + 1:4}   {losses[step] / ranks:17.12f}   {expected[step]:23.12f}")
        difference = (state_of(ours.module) - state_of(network)).abs().max().item()
        print(f"parameters and running statistics differ by {difference:.1e} at most")
        failed = not difference < LARGEST_DIFFERENCE
        print("FAILED" if failed else "All checks passed.")
    return failed


if __name__ == "__main__":
    sys.exit(main())
