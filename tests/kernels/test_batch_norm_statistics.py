"""BatchNorm's running statistics, when they are used and updated, and what is saved."""

import copy

import pytest
import torch
from batch_norms import inputs_for, running_for
from over_channels import regime as regime
from support.reference import (
    DTYPES,
    UNITS,
    error,
    unit,
)
from torch.utils.checkpoint import checkpoint

import normreg
from normreg.kernels.partition import in_splits


def layer(name, dims, channels, device, dtype=torch.float32, **options):
    torch.manual_seed(1)
    cls = getattr(normreg if name == "normreg" else torch.nn, f"BatchNorm{dims}d")
    module = cls(channels, device=device, dtype=dtype, **options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("momentum", [None, 0.0, 0.1, 1.0])
def test_running_statistics(device, guarded_memory, momentum, dtype, regime):
    ours, theirs = (layer(name, 2, 5, device, dtype, momentum=momentum) for name in ("normreg", "torch"))
    exact = layer("torch", 2, 5, device, torch.float64, momentum=momentum)
    for _ in range(3):
        x = (torch.randn(600, 5, 4, 4, device=device) * 3 + 2).to(dtype)
        assert regime == "tile" or in_splits(x).grid[1] > 1
        for module in (ours, theirs):
            module(x)
        exact(x.double())
        version = ours.num_batches_tracked._version
        assert version == theirs.num_batches_tracked._version
    for name in ("running_mean", "running_var"):
        buffers = [getattr(module, name) for module in (ours, theirs, exact)]
        # three updates, each rounded to the dtype of the buffer
        allowed = 3 * UNITS[dtype] * unit(buffers[2], dtype)
        assert error(buffers[0], buffers[2]) <= error(buffers[1], buffers[2]) + allowed
    assert torch.equal(ours.num_batches_tracked, theirs.num_batches_tracked)
    assert ours.num_batches_tracked.item() == 3


def test_running_means_are_as_if_rounded_once(device, regime):
    """0.9 of float32 is off by a quarter of a unit, and so would be every step."""
    x, running = torch.randn(40, 512, 4, device=device), torch.randn(512, device=device)
    exact = 0.9 * running.double() + 0.1 * x.double().mean((0, 2))
    of_rounding = (exact.float() - exact).square().mean().sqrt()
    normreg.functional.batch_norm(x, running, torch.ones(512, device=device), training=True)
    assert (running - exact).square().mean().sqrt() <= 1.15 * of_rounding


def test_running_var_is_unbiased(device):
    x = torch.tensor([[1.0], [3.0]], device=device)
    module = normreg.BatchNorm1d(1, momentum=1.0, device=device)
    module(x)
    assert module.running_mean.item() == 2.0
    assert module.running_var.item() == 2.0


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("momentum", [None, 0.0, 0.1, 1.0])
@pytest.mark.parametrize("buffers", [True, False], ids=["buffers", "no buffers"])
@pytest.mark.parametrize("track", [True, False], ids=["track", "no track"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_truth_table(device, launches, training, track, buffers, momentum, affine):
    """Which statistics normalise and which are updated, also where the flag was changed afterwards."""
    options = dict(momentum=momentum, affine=affine, track_running_stats=buffers, dtype=torch.float64)
    w, *batches = torch.randn(3, 4, 3, 5, device=device, dtype=torch.float64)
    state, results = None, []
    for library in (torch.nn, normreg):
        module = library.BatchNorm1d(3, device=device, **options).train(training)
        module.track_running_stats = track
        for t in [*module.parameters(), *module.buffers()]:
            if t.is_floating_point():
                torch.nn.init.uniform_(t, 0.5, 2.0)
        state = state or copy.deepcopy(module.state_dict())
        module.load_state_dict(state)
        seen = []
        for x in batches:
            leaf = x.clone().requires_grad_()
            y = module(leaf)
            seen += [y, *torch.autograd.grad((y * w).sum(), [leaf, *module.parameters()])]
            seen += [t.clone() for t in module.buffers()]
        results.append(seen)
    for our, their in zip(*reversed(results), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-13, atol=1e-13)
    assert launches


def test_buffers_are_not_saved(device):
    """Two forwards run and buffers are overwritten before one backward."""
    module = layer("normreg", 1, 4, device)
    reference = layer("torch", 1, 4, device)
    x = torch.randn(6, 4, device=device, requires_grad=True)
    for training in (True, False):
        module.train(training), reference.train(training)
        y, expected = module(x), reference(x)
        module(x * 2), reference(x * 2)
        dy = torch.randn_like(y)
        (want,) = torch.autograd.grad(expected, x, dy)
        module.running_mean.fill_(7.0)
        module.running_var.fill_(7.0)
        (got,) = torch.autograd.grad(y, x, dy)
        assert error(got, want.double()) <= 4 * unit(want, torch.float32)
        for name in ("running_mean", "running_var"):
            getattr(module, name).copy_(getattr(reference, name))


def test_what_is_saved(device):
    saved = []
    module = layer("normreg", 2, 8, device)
    x = torch.randn(3, 8, 5, 5, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        module(x)
    assert saved == [x.numel(), 8, 8, 8]


def test_checkpoints_load_both_ways(device):
    ours, theirs = (layer(name, 2, 6, device) for name in ("normreg", "torch"))
    ours(torch.randn(4, 6, 3, 3, device=device))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    assert repr(ours) == repr(theirs)


class Subclass(torch.Tensor):
    """What goes to torch's operators."""


@pytest.mark.parametrize("kernel", [True, False])
def test_recomputation_counts_batches_as_torchs(device, launches, kernel):
    """The recomputation of a checkpoint ends at the last tensor that the forward saved."""
    counts = []
    for name in ("normreg", "torch"):
        module = layer(name, 2, 6, device)
        x = torch.randn(4, 6, 3, 3, device=device, requires_grad=True)
        y = checkpoint(module, x if kernel else x.as_subclass(Subclass), use_reentrant=False)
        y.sum().backward()
        counts.append(int(module.num_batches_tracked))
    assert bool(launches) == kernel
    assert counts[0] == counts[1] == 2


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_float32_statistics_beside_16_bit_parameters(device, launches, training):
    """Mixed precision of FSDP makes such a layer, which torch's operator refuses."""
    x, weight, bias = inputs_for((6, 5, 4), False, torch.bfloat16, device)
    running, dy = running_for((6, 5, 4), device), torch.randn(6, 5, 4, device=device).bfloat16()
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        parameters = [t.detach().to(dtype).requires_grad_() for t in (weight, bias)]
        buffers = [t.clone() for t in running]
        y = normreg.functional.batch_norm(x, *buffers, *parameters, training)
        gradients = torch.autograd.grad(y, [x, *parameters], dy)
        results.append([y, *buffers, *gradients])
    assert launches
    assert all(torch.equal(a, b) for a, b in zip(*(result[:4] for result in results), strict=True))
    for half, full in zip(*(result[4:] for result in results), strict=True):
        assert torch.equal(half, full.bfloat16())
    assert results[0][1].dtype == torch.float32


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.3, 0.9])
def test_infinite_running_statistics_stay_so(device, momentum):
    """Also where 1 - momentum is rounded; with momentum 1 torch has NaN."""
    x = torch.randn(4, 3, 5, device=device)
    mean, var = torch.tensor([[float("inf"), -float("inf"), 0.0], [float("inf"), 1.0, 1.0]], device=device)
    normreg.functional.batch_norm(x, mean, var, training=True, momentum=momentum)
    assert mean[:2].tolist() == [float("inf"), -float("inf")]
    assert var[0].item() == float("inf")
    assert mean[2:].isfinite().all()
    assert var[1:].isfinite().all()
