"""What each rank of `test_sync_batch_norm.py` checks: split batches against BatchNorm of the whole one."""

import contextlib
import time
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from formulas import ACTIVATIONS as TORCHS
from reference import assert_accurate, copies
from torch import nn

import normreg
from normreg.functional import dispatch
from normreg.kernels import launch
from normreg.ops import collectives

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@contextlib.contextmanager
def in_torch():
    """No kernel takes a tensor."""
    with mock.patch.object(dispatch, "sync_batch_norm", return_value="the test says so"):
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
    names, real = [], launch.launch

    def spy(plan, *tensors, **options):
        names.append(plan.kernel.fn.__name__)
        return real(plan, *tensors, **options)

    with mock.patch.object(launch, "launch", spy):
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
    """SyncBatchNormAct, and the state of torch's BatchNorm in float64."""
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
):  # fmt: skip
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


# The checks, functions of rank and size.


def unequal_and_empty_batches(rank, size):
    sizes = sizes_of(size, 3)
    with sent() as calls:
        agrees(rank, size, sizes, (5, 4, 3), residual=True, act="gelu")
    assert calls == [("all_gather", 3 * 5 + 2, torch.float64), ("all_reduce", 2 * 5, torch.float64)]
    agrees(rank, size, sizes, (65,))
    agrees(rank, size, sizes, (5, 2, 1, 3), act="leaky_relu", residual=True, last=True, momentum=None)
    agrees(rank, size, [0] * (size - 1) + [4], (3, 5), act="silu", affine=False, track_running_stats=False)
    agrees(rank, size, [1] * size, (3,))


def unequal_and_empty_batches_in_torch(rank, size):
    with in_torch():
        unequal_and_empty_batches(rank, size)


def every_dtype(rank, size):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with sent() as calls:
            agrees(rank, size, [4] * size, (6, 3, 3), dtype, act="relu", residual=True, last=True)
        assert calls == [("all_gather", 3 * 6 + 2, torch.float32), ("all_reduce", 2 * 6, torch.float32)]
        with in_torch():
            agrees(rank, size, [4] * size, (6, 3, 3), dtype, act="relu", residual=True, last=True)


def a_large_mean(rank, size):
    """As exact as BatchNorm, with 3 numbers a channel: the ranks' means are sent as two."""
    agrees(rank, size, sizes_of(size, 20), (3, 7), torch.float32, mean=1e6)
    with in_torch():
        agrees(rank, size, sizes_of(size, 20), (3, 7), torch.float32, mean=1e6)


def all_batches_empty(rank, size):
    """The running statistics stay; the batch counts."""
    for context in (contextlib.nullcontext(), in_torch()):
        layer = layers(3, torch.float32, None)
        before = copies(layer.state_dict().values())
        x = torch.randn(0, 3, 5, requires_grad=True)
        with context:
            y = layer(x)
            (dx,) = torch.autograd.grad(y.sum(), x)
        assert y.shape == dx.shape == x.shape
        assert all(torch.equal(a, b) for a, b in zip(list(layer.state_dict().values())[:4], before))
        assert layer.num_batches_tracked == 1


def gradients_of_some(rank, size):
    """Without dx nothing is sent in the backward; expanded and permuted gradients are taken."""
    x, residual = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    expanded, permuted = torch.randn(()).expand(4, 3, 5), torch.randn(5, 3, 4).permute(2, 1, 0)
    for act, dy in ((None, permuted.double()), ("relu", expanded.double()), ("silu", permuted.double())):
        layer = layers(3, torch.float64, act)
        inputs = [x, layer.weight, layer.bias, residual]
        for t in inputs:
            t.requires_grad_()
        everything = torch.autograd.grad(layer(x, residual), inputs, dy)
        for t in inputs:
            t.requires_grad_(False)
        for t, expected in zip(inputs, everything):
            t.requires_grad_()
            with sent() as calls:
                (alone,) = torch.autograd.grad(layer(x, residual), t, dy)
            assert len(calls) == (2 if t is x else 1)
            torch.testing.assert_close(alone, expected)
            t.requires_grad_(False)
    assert layer(x).grad_fn is None


def second_derivatives_of(rank, sizes, act, residual):
    ours, begin = layers(3, torch.float64, act), sum(sizes[:rank])
    theirs = torchs(ours, torch.float64)
    samples = whole_batch(sizes, (3, 4), torch.float64)

    def gradients(layer, function, x, r, dy):
        leaves = [t.detach().requires_grad_() for t in (x, r, dy)]
        y = function(*leaves[:2])
        dx, *_ = torch.autograd.grad(y, [leaves[0], *layer.parameters()], leaves[2], create_graph=True)
        return torch.autograd.grad((dx**2).sum(), [leaves[0], leaves[2], layer.weight])

    def whole(x, r):
        activation = TORCHS[act]
        return activation(theirs(x) + r if residual else theirs(x))

    *expected, expected_dweight = gradients(theirs, whole, *samples)
    mine = [t[begin : begin + sizes[rank]] for t in samples]
    *found, dweight = gradients(ours, lambda x, r: ours(x, r if residual else None), *mine)
    for result, right in zip(found, expected):
        torch.testing.assert_close(result, right[begin : begin + sizes[rank]], rtol=1e-9, atol=1e-9)
    dist.all_reduce(dweight)
    torch.testing.assert_close(dweight, expected_dweight, rtol=1e-9, atol=1e-9)


def second_derivatives(rank, size):
    """Of all ranks' loss, against those of the whole batch."""
    for act, residual in ((None, False), ("silu", True), ("leaky_relu", True)):
        second_derivatives_of(rank, [3, 0, 2, 4][:size], act, residual)
    x = torch.randn(4, 3, requires_grad=True)
    fails(RuntimeError, "call backward once for each", lambda: torch.autograd.grad(
        normreg.SyncBatchNorm(3)(x), x, torch.randn(2, 4, 3), is_grads_batched=True))  # fmt: skip


def the_truth_table_of_torchs(rank, size):
    """Evaluation synchronises nothing; statistics are updated where torch's are; replace finds the layer."""
    x = torch.randn(4 + rank, 3, 2)
    for options in (dict(), dict(track_running_stats=False), dict(affine=False), dict(momentum=None)):
        theirs = nn.SyncBatchNorm(3, **options)
        ours = nn.SyncBatchNorm(3, **options)
        normreg.replace(ours)
        for training in (True, False):
            ours.train(training)
            with sent() as calls:
                y = ours(x)
            assert len(calls) == training
        if options.get("track_running_stats", True):
            theirs.load_state_dict(ours.state_dict())
            torch.testing.assert_close(y, theirs.eval()(x))
    with normreg.running_statistics_held(ours.train()):
        before = copies(ours.buffers())
        ours(x)
        assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), before, strict=True))


def nothing_waits_for_the_device(rank, size):
    """After the first batch nothing is read back, which is what a host waits for."""
    layer, x = normreg.SyncBatchNormAct(3, momentum=None), torch.randn(4, 3, requires_grad=True)
    layer(x)
    for context in (contextlib.nullcontext(), in_torch()):
        names = set()
        with context, torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            layer(x).sum().backward()
        names = {event.name for event in profile.events()}
        assert any("all_gather" in name for name in names)
        assert names.isdisjoint(
            {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}
        )


def autograd_sees_what_is_kept(rank, size):
    """x, weight, mean in float64, var and count: the buffers may be changed before the backward."""
    layer, saved = normreg.SyncBatchNorm(3), []
    x = torch.randn(4, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x)
    assert sorted(t.numel() * t.itemsize for t in saved) == [8, 3 * 4, 3 * 4, 3 * 8, 12 * 4]
    with launched() as names:
        layer(x)
        assert len(names) == 4
        expected = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
        assert len(names) == 7
    layer(2 * x)
    layer.running_mean.fill_(9)
    assert torch.equal(torch.autograd.grad(y, x, torch.ones_like(y))[0], expected[0])


def one_compiled_graph(rank, size):
    layer = layers(3, torch.float32, "silu")
    twin = layers(3, torch.float32, "silu")
    twin.load_state_dict(layer.state_dict())
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for samples in (4, 5, 6):
        x = torch.randn(samples + rank, 3, 2)
        results = []
        for function in (layer, compiled):
            leaf = x.clone().requires_grad_()
            y = function(leaf, residual=leaf)
            results.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *function.parameters()])])
        torch.testing.assert_close(*results)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())


def the_operator_is_what_it_says(rank, size):
    group, x = dist.group.WORLD.group_name, torch.randn(4, 3, 2, 2).contiguous(memory_format=LAST[4])
    vectors = [torch.rand(3) for _ in range(4)]
    for by_kernels in (True, False):
        arguments = (
            x, *vectors[:2], x, "relu", 0.0, 1e-5, group, size, by_kernels, *vectors[2:], torch.tensor(3),
            0.1,
        )  # fmt: skip
        operators = torch.ops.normreg
        for utility in ("test_schema", "test_faketensor"):
            torch.library.opcheck(operators.sync_batch_norm.default, (*arguments, True), test_utils=utility)
        _, mean, var, count, bits = operators.sync_batch_norm(*arguments, True)
        backward = (
            x, x, *vectors[:2], None if by_kernels else x, bits, mean, var, count, "relu", 0.0, 1e-5, group,
            by_kernels, torch.float32, [True] * 4,
        )  # fmt: skip
        for utility in ("test_schema", "test_faketensor"):
            torch.library.opcheck(operators.sync_batch_norm_backward.default, backward, test_utils=utility)


def fails(error, message, call):
    with pytest.raises(error, match=message):
        call()


def bad_input_everywhere(rank, size):
    sync = normreg.functional.sync_batch_norm
    x, three = torch.randn(4, 3), torch.zeros(3)
    fails(ValueError, "expected at least 2D input", lambda: sync(three, None, None))
    fails(ValueError, "give the layer num_features=3", lambda: sync(x, None, None, torch.ones(4)))
    fails(ValueError, "both running statistics", lambda: sync(x, three, None))
    fails(TypeError, "floating-point input", lambda: sync(x.long(), None, None))
    fails(ValueError, "a residual like the input", lambda: sync(x, None, None, residual=x[:1]))
    fails(ValueError, "expected act to be None or one of", lambda: sync(x, None, None, act="tanh"))
    outside = dist.GroupMember.NON_GROUP_MEMBER
    fails(
        ValueError, "pass each rank its own group", lambda: normreg.SyncBatchNorm(3, process_group=outside)(x)
    )
    on_gpus = mock.PropertyMock(return_value=[torch.device("cuda")])
    with mock.patch.object(type(dist.group.WORLD), "_device_types", on_gpus):
        fails(ValueError, "expected a tensor on cuda, where", lambda: normreg.SyncBatchNorm(3)(x))
        fails(ValueError, "gloo for CPU tensors", lambda: sync(x, None, None))
    mesh = dist.device_mesh.init_device_mesh("cpu", (size,))
    sharded = dist.tensor.distribute_tensor(x, mesh, [dist.tensor.Shard(0)])
    fails(TypeError, "got a DTensor: pass its to_local", lambda: normreg.SyncBatchNorm(3)(sharded))
    normreg.SyncBatchNorm(3)(x)  # and nothing is left over from the failures


def ranks_that_disagree(rank, size):
    layer = normreg.SyncBatchNorm(3 + rank)
    fails(ValueError, "rank 1 of the group 4 channels", lambda: layer(torch.randn(4, 3 + rank)))
    dtype = (torch.float32, torch.bfloat16)[rank]
    layer = normreg.SyncBatchNorm(3)
    fails(
        ValueError,
        "rank 1 of the group 3 channels of torch.bfloat16",
        lambda: layer(torch.randn(4, 3).to(dtype)),
    )
    assert layer.num_batches_tracked == 0
    layer(torch.randn(4, 3))


def groups_of_some_ranks(rank, size):
    """Ranks of other parity do not matter, nor what order their calls come in."""
    groups = [dist.new_group(list(range(first, size, 2))) for first in (0, 1)]
    mine = list(range(rank % 2, size, 2))
    samples = torch.randn(size, 4, 3, dtype=torch.float64)
    layer = normreg.SyncBatchNorm(3, process_group=groups[rank % 2], dtype=torch.float64)
    y = layer(samples[rank])
    whole = nn.BatchNorm1d(3, dtype=torch.float64)(samples[mine].flatten(0, 1)).view(-1, 4, 3)
    torch.testing.assert_close(y, whole[mine.index(rank)])


def a_rank_that_dies(rank, size):
    """torch.distributed's error, at once. The last check of a world."""
    layer, x = normreg.SyncBatchNorm(3), torch.randn(4, 3)
    layer(x)
    dist.barrier()
    if rank == 1:
        raise SystemExit("as intended")
    begin = time.monotonic()
    fails(RuntimeError, "", lambda: layer(x))
    assert time.monotonic() - begin < 30
