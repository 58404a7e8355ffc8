"""Batches split over ranks, layers, and the comparison with BatchNorm of the whole batch."""

import contextlib
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from formulas import ACTIVATIONS as TORCHS
from over_channels import LAST
from support.reference import assert_accurate
from support.spies import noting
from torch import nn

import normreg
from normreg.functional import synchronized
from normreg.kernels import launch
from normreg.ops import collectives


@contextlib.contextmanager
def in_torch():
    """Hands every call to torch."""
    with mock.patch.object(synchronized, "sync_batch_norm_reason", return_value="the test says so"):
        yield


@contextlib.contextmanager
def sent():
    """(name, elements, dtype) of each collective."""
    calls = []

    def spy(name):
        real = getattr(collectives, name)

        def call(tensor, *arguments):
            calls.append((name, tensor.numel(), tensor.dtype))
            return real(tensor, *arguments)

        return mock.patch.object(collectives, name, call)

    with spy("all_gather"), spy("all_reduce"):
        yield calls


@contextlib.contextmanager
def launched():
    """Names of the kernels launched."""
    names = []
    with mock.patch.object(launch, "launch", noting(names)):
        yield names


def same_on_all_ranks(*tensors):
    for tensor in tensors:
        everywhere = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(everywhere, tensor.contiguous())
        assert all(torch.equal(tensor, other) for other in everywhere), "ranks differ"


def sizes_of(size, samples):
    """Unequal batches, of which the second is empty."""
    sizes = [samples * (rank + 1) if rank != 1 else 0 for rank in range(size)]
    return sizes


def whole_batch(sizes, shape, dtype, mean=0.0, channels_last=False):
    """x, residual and dy of all ranks, the same on each of them."""
    tensors = [(torch.randn(sum(sizes), *shape, dtype=torch.float64) + m).to(dtype) for m in (mean, 0.0, 0.0)]
    if channels_last:
        tensors = [t.contiguous(memory_format=LAST[t.dim()]) for t in tensors]
    return tensors


def layers(channels, dtype, act, momentum=0.1, **options):
    """A SyncBatchNormAct with nothing at its initial value."""
    ours = normreg.SyncBatchNormAct(
        channels, momentum=momentum, act=act, negative_slope=0.3, dtype=dtype, **options
    )
    for tensor in [*ours.parameters(), *ours.buffers()]:
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2.0)
    return ours


def torchs(ours, dtype):
    theirs = nn.BatchNorm2d(
        ours.num_features, ours.eps, ours.momentum, ours.affine, ours.track_running_stats, dtype=dtype
    )
    theirs._check_input_dim = lambda x: None
    theirs.load_state_dict(ours.state_dict())
    return theirs


def results_of(layer, x, residual, dy, with_residual, act):
    """y, dx and dresidual of these samples; parameters' gradients; running statistics."""
    leaves = [t.detach().requires_grad_() for t in (x, residual)]
    if act == "ours":
        y = layer(leaves[0], residual=leaves[1] if with_residual else None)
    else:
        y = TORCHS[act](layer(leaves[0]) + leaves[1] if with_residual else layer(leaves[0]))
    wanted = [*leaves[: 1 + with_residual], *layer.parameters()]
    gradients = torch.autograd.grad(y, wanted, dy)
    return [y.detach(), *gradients[: 1 + with_residual]], gradients[1 + with_residual :]


def agrees(
    rank, size, sizes, shape, dtype=torch.float64, act=None, residual=False, mean=0.0, last=False, **of_layer
):
    ours = layers(shape[0], dtype, act, **of_layer)
    samples = whole_batch(sizes, shape, dtype, mean, last)
    exact_layer, torch_layer = torchs(ours, torch.float64), torchs(ours, dtype)
    exact = results_of(exact_layer, *(t.double() for t in samples), residual, act)
    rounded = results_of(torch_layer, *samples, residual, act)
    first = sum(sizes[:rank])
    mine = [t[first : first + sizes[rank]] for t in samples]
    if last:
        mine = [t.contiguous(memory_format=LAST[t.dim()]) for t in mine]
    own, parameters = results_of(ours, *mine, residual, "ours")
    for name, result, theirs, right in zip(("y", "dx", "dresidual"), own, rounded[0], exact[0]):
        theirs, right = (t[first : first + sizes[rank]] for t in (theirs, right))
        assert result.stride() == mine[0].stride(), f"strides of {name}"
        close(name, result, theirs, right, mean)
    for name, result, theirs, right in zip(("dweight", "dbias"), parameters, rounded[1], exact[1]):
        total = result.double()
        dist.all_reduce(total)
        close(name, total.to(dtype), theirs, right, mean)
    if ours.track_running_stats:
        for name in ("running_mean", "running_var"):
            close(name, *(getattr(layer, name) for layer in (ours, torch_layer, exact_layer)), mean)
        assert ours.num_batches_tracked == exact_layer.num_batches_tracked
        same_on_all_ranks(ours.running_mean, ours.running_var)


# beyond torch's error: gradients are sums that cancel, and what ranks send is rounded
UNITS = {torch.float64: 64, torch.float32: 64, torch.bfloat16: 2, torch.float16: 2}


def close(name, result, theirs, right, mean):
    assert result.dtype == theirs.dtype
    # of a large mean, torch's float32 is off by hundredths
    assert_accurate(result, theirs if mean == 0 else 0.0, right, name, units=UNITS)


def fails(error, message, call):
    with pytest.raises(error, match=message):
        call()
