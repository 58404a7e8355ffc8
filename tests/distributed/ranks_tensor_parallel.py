"""What each rank of `test_tensor_parallel.py` checks: DTensors, and torch's sequence parallelism."""

import copy

import torch
import torch.distributed as dist
from split_batches import fails, launched
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module

import normreg


class Norms(nn.Module):
    def __init__(self, library, p=0.0):
        super().__init__()
        self.norm, self.rms, self.drop = (
            library.LayerNorm(8),
            library.RMSNorm(8, eps=1e-5),
            library.Dropout(p),
        )

    def forward(self, x):
        return self.drop(self.rms(self.norm(x)))


def norms(dtype=torch.float64):
    """normreg's and torch's norms in the same state."""
    theirs = Norms(nn).to(dtype)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours = Norms(normreg).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def sequence_parallel(rank, size):
    """Rows stay where they are: nothing is communicated, and the parameters' gradients are partial sums."""
    mesh = init_device_mesh("cpu", (size,))
    for dim, length in ((0, 6), (1, 6), (1, 5)):
        ours, theirs = norms()
        parallelize_module(
            ours, mesh, {name: SequenceParallel(sequence_dim=dim) for name in ("norm", "rms", "drop")}
        )
        x, dy = torch.randn(2, 2 + length * (dim == 0), length, 8, dtype=torch.float64)
        sharded, sharded_dy = (distribute_tensor(t, mesh, [Shard(dim)]) for t in (x, dy))
        sharded.requires_grad_()
        with CommDebugMode() as communicated:  # under which, as under every mode, torch's operators run
            ours(sharded).backward(sharded_dy)
        assert communicated.get_total_counts() == 0
        ours.zero_grad()
        sharded.grad = None
        with launched() as names:
            y = ours(sharded)
            y.backward(sharded_dy)
        assert {name.partition("_kernel")[0] for name in names} >= {
            "layer_norm_forward",
            "layer_norm_backward",
            "column_sums",
        }
        assert (y.placements, sharded.grad.placements) == ((Shard(dim),), (Shard(dim),))
        assert y.shape == x.shape
        x.requires_grad_()
        expected = theirs(x)
        expected.backward(dy)
        close(y.full_tensor(), expected)
        close(sharded.grad.full_tensor(), x.grad)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert a.grad.placements == (Partial(),)
            close(a.grad.full_tensor(), b.grad)


def placements_of_every_kind(rank, size):
    """Placements that cannot be kept are changed as torch changes them, and come out as torch's."""
    mesh = init_device_mesh("cpu", (size,))
    ours, theirs = norms()
    x = torch.randn(4, 6, 8, dtype=torch.float64)
    for model in (ours, theirs):
        for module in (model.norm, model.rms):
            for name, parameter in list(module.named_parameters()):
                module.register_parameter(
                    name, nn.Parameter(distribute_tensor(parameter.data, mesh, [Replicate()]))
                )
    for placement in (Replicate(), Shard(0), Shard(2), Partial()):
        results = []
        for model in (theirs, ours):
            model.zero_grad()
            placed = DTensor.from_local(x, mesh, [placement]) if placement.is_partial() else None
            placed = distribute_tensor(x, mesh, [placement]) if placed is None else placed
            placed.requires_grad_()
            y = model(placed)
            (y.full_tensor() ** 2).sum().backward()
            results.append([y, placed.grad, *(p.grad for p in model.parameters())])
        for a, b in zip(*results, strict=True):
            close(a.full_tensor(), b.full_tensor())
        if placement in (Replicate(), Shard(0)):
            assert results[1][0].placements == (placement,)
        else:
            assert results[1][0].placements == results[0][0].placements
    fails(RuntimeError, "mixed torch.Tensor and DTensor", lambda: ours(x))
    columns = normreg.LayerNorm(8, dtype=torch.float64)
    columns.weight = nn.Parameter(distribute_tensor(columns.weight.data, mesh, [Shard(0)]))
    columns.bias = nn.Parameter(distribute_tensor(columns.bias.data, mesh, [Replicate()]))
    rows = distribute_tensor(x, mesh, [Shard(0)])
    close(columns(rows).full_tensor(), nn.functional.layer_norm(x, (8,)))


def second_derivatives(rank, size):
    mesh = init_device_mesh("cpu", (size,))
    x, dy = torch.randn(2, 4, 8, dtype=torch.float64)
    results = []
    for place in (lambda t: t, lambda t: distribute_tensor(t, mesh, [Shard(0)])):
        leaf = place(x.detach()).requires_grad_()
        (dx,) = torch.autograd.grad(
            normreg.functional.layer_norm(leaf, (8,)), leaf, place(dy), create_graph=True
        )
        results.append(torch.autograd.grad((dx**3).sum(), leaf)[0])
    close(results[1].full_tensor(), results[0])


def a_mesh_of_two_dimensions(rank, size):
    mesh = init_device_mesh("cpu", (2, size // 2))
    ours, theirs = norms()
    for name, parameter in [*ours.named_parameters()]:
        module, name = ours.get_submodule(name.split(".")[0]), name.split(".")[1]
        placed = distribute_tensor(parameter.data, mesh, [Replicate(), Replicate()])
        module.register_parameter(name, nn.Parameter(placed))
    x = torch.randn(4, 6, 8, dtype=torch.float64)
    for placements in ((Shard(0), Shard(1)), (Replicate(), Shard(0)), (Shard(0), Shard(0))):
        ours.zero_grad()
        theirs.zero_grad()
        y = ours(distribute_tensor(x, mesh, placements))
        assert y.placements == placements
        (y.full_tensor() ** 2).sum().backward()
        expected = theirs(x)
        (expected**2).sum().backward()
        close(y.full_tensor(), expected)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            close(a.grad.full_tensor(), b.grad)


def masks_of_shards(rank, size):
    """Shards drop other elements although all ranks have the same seed; checkpoints repeat the masks."""
    mesh = init_device_mesh("cpu", (size,))
    x = torch.ones(8 * size, 16)
    sharded = distribute_tensor(x, mesh, [Shard(0)]).requires_grad_()
    for p in (0.25, 0.5):
        with CommDebugMode() as communicated:
            normreg.functional.dropout(sharded, p)
        assert communicated.get_total_counts() == 0
        torch.manual_seed(3)
        y = normreg.functional.dropout(sharded, p)
        assert y.placements == (Shard(0),)
        whole = y.full_tensor()
        parts = whole.chunk(size)
        assert all(not torch.equal(parts[0], part) for part in parts[1:])
        assert set(whole.unique().tolist()) == {0.0, whole.max().item()}
        (dx,) = torch.autograd.grad(y.to_local().sum(), sharded)
        assert torch.equal(dx.to_local(), y.to_local())
        torch.manual_seed(3)
        assert torch.equal(normreg.functional.dropout(sharded, p).to_local(), y.to_local())
        another = normreg.functional.dropout(sharded, p)
        assert not torch.equal(another.to_local(), y.to_local())
    module = copy.deepcopy(normreg.Dropout(0.5))
    torch.manual_seed(3 + rank)  # ranks need not share a seed
    everywhere = module(sharded).full_tensor().chunk(size)
    assert all(not torch.equal(everywhere[0], part) for part in everywhere[1:])
    assert dist.get_world_size() == size
