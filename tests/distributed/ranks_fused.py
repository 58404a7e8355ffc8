"""What each rank of `test_fused.py` checks: fused models under DistributedDataParallel and fully_shard."""

import copy

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import normreg


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear1, self.linear2, self.act = nn.Linear(8, 16), nn.Linear(16, 8), nn.GELU()
        self.norm, self.dropout = nn.LayerNorm(8), nn.Dropout(0.25)

    def forward(self, x):
        return self.norm(x + self.dropout(self.linear2(self.dropout(self.act(self.linear1(x))))))


FUSED = ["linear1 -> act -> dropout", "dropout -> + -> norm"]


def twins():
    """A model of two blocks, fused, and the same unfused."""
    torch.manual_seed(1)
    plain = nn.Sequential(Block(), Block())
    fused = copy.deepcopy(plain)
    normreg.replace(plain)
    return fused, plain


def trained(model, rank, size):
    """Outputs and gradients of two steps, each rank on a batch and masks of its own."""
    torch.manual_seed(3 + rank)
    optimizer, results = torch.optim.SGD(model.parameters(), 0.1), []
    for _ in range(2):
        optimizer.zero_grad()
        y = model(torch.randn(4, 8))
        y.square().mean().backward()
        gradients = [p.grad for p in model.parameters()]
        results += [
            y.detach(),
            *(g.full_tensor() if hasattr(g, "full_tensor") else g.clone() for g in gradients),
        ]
        optimizer.step()
    return results


def assert_alike(results, expected):
    for result, want in zip(results, expected, strict=True):
        torch.testing.assert_close(result, want)


def under_distributed_data_parallel(rank, size):
    """Fused before it is wrapped, or as a wrapped whole, of which the module inside is fused then."""
    for fused_first in (True, False):
        fused, plain = twins()
        if fused_first:
            normreg.replace(fused, fuse=True)
        model = DistributedDataParallel(fused)
        if not fused_first:
            report = normreg.replace(model, fuse=True, example_inputs=torch.randn(4, 8))
            assert [f.what for f in report.fused] == FUSED * 2, report
        assert_alike(trained(model, rank, size), trained(DistributedDataParallel(plain), rank, size))
        assert [f.what for f in normreg.explain(model, torch.randn(4, 8)).fused] == FUSED * 2


def under_fully_shard(rank, size):
    """Blocks that are fused, then sharded, so that each is gathered as before."""
    fused, plain = twins()
    for block in fused:
        normreg.replace(block, fuse=True)
    for model in (fused, plain):
        for block in model:
            fully_shard(block)
        fully_shard(model)
    assert_alike(trained(fused, rank, size), trained(plain, rank, size))


def a_fused_whole_under_fully_shard(rank, size):
    fused, plain = twins()
    normreg.replace(fused, fuse=True)
    for model in (fused, plain):
        for block in model:
            fully_shard(block)
        fully_shard(model)
    assert_alike(trained(fused, rank, size), trained(plain, rank, size))
