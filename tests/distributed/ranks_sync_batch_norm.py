"""What each rank of `test_sync_batch_norm.py` checks: split batches against BatchNorm of the whole one."""

import contextlib
import time
from unittest import mock

import torch
import torch.distributed as dist
from formulas import ACTIVATIONS as TORCHS
from over_channels import LAST
from split_batches import agrees, fails, in_torch, launched, layers, sent, sizes_of, torchs, whole_batch
from support.reference import copies
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import normreg
from normreg.kernels.memory_format import flags_of


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
    """Results are as exact as BatchNorm's: a rank sends 3 numbers a channel, two of them its mean."""
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
    """Second derivatives of all ranks' loss are those of the whole batch."""
    for act, residual in ((None, False), ("silu", True), ("leaky_relu", True)):
        second_derivatives_of(rank, [3, 0, 2, 4][:size], act, residual)
    x = torch.randn(4, 3, requires_grad=True)
    fails(
        RuntimeError,
        "call backward once for each",
        lambda: torch.autograd.grad(
            normreg.SyncBatchNorm(3)(x), x, torch.randn(2, 4, 3), is_grads_batched=True
        ),
    )


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
    settings = "relu", 0.0, 1e-5, group  # act, negative_slope, eps
    for by_kernels in (True, False):
        arguments = x, *vectors[:2], x, *settings, size, by_kernels, *vectors[2:], torch.tensor(3), 0.1
        operators = torch.ops.normreg
        for utility in ("test_schema", "test_faketensor"):
            torch.library.opcheck(operators.sync_batch_norm.default, (*arguments, True), test_utils=utility)
        _, mean, var, count, bits = operators.sync_batch_norm(*arguments, True)
        given = x, x, *vectors[:2], None if by_kernels else x, bits, mean, var, count
        backward = *given, *settings, by_kernels, torch.float32, [True] * 4
        for utility in ("test_schema", "test_faketensor"):
            torch.library.opcheck(operators.sync_batch_norm_backward.default, backward, test_utils=utility)


def its_decomposition(rank, size):
    """Results, gradients and running statistics, also of an empty batch; no collective changes its input."""
    for samples in (4, 4 * rank):
        decomposed_batch(torch.randn(samples, 3, 2, 5).contiguous(memory_format=LAST[4]), size)


def decomposed_batch(x, size):
    group = dist.group.WORLD.group_name
    weight, bias, *running = [torch.rand(3) for _ in range(4)]
    options = "leaky_relu", 0.2, 1e-5, group
    forward, backward = torch.ops.normreg.sync_batch_norm, torch.ops.normreg.sync_batch_norm_backward
    table, found = normreg.decomposition_table(), []
    for call in (lambda operator: operator, table.get):
        tracked = [*copies(running), torch.tensor(3)]
        y, *kept, bits = call(forward.default)(x, weight, bias, x, *options, size, True, *tracked, None, True)
        given = torch.ones_like(x), x, weight, bias, None, bits, *kept, *options
        gradients = call(backward.default)(*given, True, torch.float32, [True] * 4)
        found.append([y, *kept, *flags_of(bits, x), *gradients, *tracked])
        assert [t.stride() for t in (y, gradients[0])] == [x.stride()] * 2
    torch.testing.assert_close(*found)
    graph = make_fx(table[backward.default])(*given, True, torch.float32, [True] * 4)
    collectives = [str(node.target) for node in graph.graph.nodes if "c10d" in str(node.target)]
    assert collectives == [f"_c10d_functional.{name}.default" for name in ("all_reduce", "wait_tensor")]


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
    """Even and odd ranks are groups of their own, whatever the order of calls."""
    groups = [dist.new_group(list(range(first, size, 2))) for first in (0, 1)]
    mine = list(range(rank % 2, size, 2))
    samples = torch.randn(size, 4, 3, dtype=torch.float64)
    layer = normreg.SyncBatchNorm(3, process_group=groups[rank % 2], dtype=torch.float64)
    y = layer(samples[rank])
    whole = nn.BatchNorm1d(3, dtype=torch.float64)(samples[mine].flatten(0, 1)).view(-1, 4, 3)
    torch.testing.assert_close(y, whole[mine.index(rank)])


def a_rank_that_dies(rank, size):
    """The ranks that are left get torch.distributed's error at once. It is the last check of a world."""
    layer, x = normreg.SyncBatchNorm(3), torch.randn(4, 3)
    layer(x)
    dist.barrier()
    if rank == 1:
        raise SystemExit("as intended")
    begin = time.monotonic()
    fails(RuntimeError, "", lambda: layer(x))
    assert time.monotonic() - begin < 30
