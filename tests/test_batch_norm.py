import copy

import pytest
import torch
import torch.nn.functional as F
from over_channels import LAST, split_all
from reference import (
    DTYPES,
    UNITS,
    assert_accurate,
    assert_agrees,
    copies,
    error,
    in_every_layout,
    in_layout,
    run,
    unit,
)

import normreg
from normreg.kernels import tiling
from normreg.kernels.device import channels

# (shape, channels-last?): one and several channel blocks, tiles, splits; ragged beside a tile
SHAPES = [
    ((2, 1), False),
    ((3, 5), False),
    ((17, 65), False),
    ((300, 129), False),
    ((2, 3, 7), False),
    ((70, 6, 7), False),
    ((4, 3, 1, 1), False),
    ((2, 1, 3, 5), False),
    ((2, 1, 3, 5), True),
    ((5, 17, 7, 7), False),
    ((5, 17, 7, 7), True),
    ((3, 65, 8, 8), False),
    ((3, 65, 8, 8), True),
    ((1, 2, 45, 46), False),
    ((9, 4, 33, 32), False),
    ((9, 4, 33, 32), True),
    ((2, 3, 2, 3, 5), False),
    ((2, 9, 2, 3, 5), True),
]
SHAPE_IDS = ["x".join(map(str, shape)) + " channels_last" * last for shape, last in SHAPES]
every_shape = pytest.mark.parametrize(("shape", "channels_last"), SHAPES, ids=SHAPE_IDS)


def inputs_for(shape, channels_last, dtype, device, affine="weight bias", mean=0.0, std=1.0):
    x = (torch.randn(shape, device=device, dtype=torch.float64) * std + mean).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=LAST[x.dim()])
    weight, bias = (
        torch.randn(shape[1], device=device, dtype=dtype, requires_grad=True) if name in affine else None
        for name in ("weight", "bias")
    )
    return [x.requires_grad_(), weight, bias]


def running_for(shape, device):
    return [torch.randn(shape[1], device=device), torch.rand(shape[1], device=device) + 0.1]


def functions(running=(None, None), training=True, eps=1e-5):
    """normreg's and torch's function of (x, weight, bias); each call works on copies of the buffers."""

    def calls(batch_norm):
        def call(x, weight, bias):
            buffers = [None if buffer is None else buffer.to(x.dtype) for buffer in running]
            return batch_norm(x, *buffers, weight, bias, training=training, momentum=0.3, eps=eps)

        return call

    return calls(normreg.functional.batch_norm), calls(F.batch_norm)


def layer(name, dims, channels, device, dtype=torch.float32, **options):
    torch.manual_seed(1)
    cls = getattr(normreg if name == "normreg" else torch.nn, f"BatchNorm{dims}d")
    module = cls(channels, device=device, dtype=dtype, **options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@pytest.fixture(params=["held", "split"])
def regime(request, monkeypatch):
    """Channels of a few thousand elements are held by a program each; here they are split as well."""
    if request.param == "split":
        split_all(monkeypatch)
    return request.param


def test_shapes_cover_the_plans(device):
    plans = [channels.plan(torch.empty(shape, device=device)) for shape, _ in SHAPES]
    assert {plan.grid[0] > 1 for plan in plans} == {True, False}, "channel blocks"
    assert {plan.grid[1] > 1 for plan in plans} == {True, False}, "splits"
    assert {plan.sizes[4] > 1 for plan in plans} == {True, False}, "tiles a split"
    samples = {(plan.constants["BLOCK_SAMPLES"] > 1, plan.sizes[3] > 1) for plan in plans}
    assert (True, True) in samples, "several tiles of several samples"
    assert {plan.constants["VECTOR"] for plan in plans} >= {1, 2, 8}


@pytest.mark.parametrize(
    ("regime", "dtype"),
    [*(("held", dtype) for dtype in DTYPES), ("split", torch.bfloat16), ("split", torch.float32)],
    indirect=["regime"],
    ids=str,
)
@every_shape
def test_training_agrees_with_torch(device, guarded_memory, shape, channels_last, dtype, regime):
    inputs = [guarded_memory.place(t) for t in inputs_for(shape, channels_last, dtype, device)]
    assert_agrees(*functions(), inputs)


@every_shape
def test_inference_agrees_with_torch(device, guarded_memory, shape, channels_last):
    running = [guarded_memory.place(t) for t in running_for(shape, device)]
    inputs = [guarded_memory.place(t) for t in inputs_for(shape, channels_last, torch.float32, device)]
    assert_agrees(*functions(running, training=False), inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inference_in_every_dtype(device, dtype):
    shape = (4, 6, 5, 5)
    assert_agrees(
        *functions(running_for(shape, device), training=False), inputs_for(shape, True, dtype, device)
    )


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("affine", ["weight bias", "weight", "bias", ""])
def test_absent_parameters(device, affine, training, regime):
    shape = (6, 5, 9)
    running = running_for(shape, device)
    assert_agrees(*functions(running, training), inputs_for(shape, False, torch.float32, device, affine))


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("wanted", range(1, 8), ids=lambda bits: f"{bits:03b}")
def test_gradient_of_any_subset(device, wanted, training, regime):
    shape = (6, 70, 3, 3)
    inputs = inputs_for(shape, True, torch.float32, device)
    for i, t in enumerate(inputs):
        t.requires_grad_(bool(wanted >> i & 1))
    assert_agrees(*functions(running_for(shape, device), training), inputs)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(("shape", "channels_last", "layout"), in_every_layout(
    ((6, 5), False), ((4, 3, 7), False), ((5, 17, 3, 3), False), ((5, 17, 3, 3), True), ((4, 1, 3, 2), False),
    ((4, 1, 3, 2), True), ((4, 3, 1, 1), False), ((2, 3, 2, 3, 2), False), ((2, 3, 2, 3, 2), True),
))  # fmt: skip
def test_gradient_layouts(device, shape, channels_last, layout, training):
    inputs = inputs_for(shape, channels_last, torch.float32, device)
    dy = in_layout(layout, inputs[0])
    assert_agrees(*functions(running_for(shape, device), training), inputs, dy)


@pytest.mark.parametrize("view", [
    lambda x: x.transpose(0, 1), lambda x: x[..., ::2], lambda x: x[:, ::2], lambda x: x.flip(1),
    lambda x: x.transpose(2, 3), lambda x: x[:1].expand(3, -1, -1, -1),
    lambda x: x.contiguous(memory_format=torch.channels_last)[:, 1:],
], ids=["batch and channels swapped", "cols sliced", "channels sliced", "flipped", "plane transposed",
        "expanded", "channels_last sliced"])  # fmt: skip
def test_input_strides(device, view):
    x = view(torch.randn(4, 4, 6, 8, device=device)).detach().requires_grad_()
    weight, bias = (torch.randn(2 * x.shape[1], device=device)[::2].requires_grad_() for _ in range(2))
    assert_agrees(*functions(), [x, weight, bias])


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("mean", "std", "dtype"), [
    (1e2, 1.0, torch.float16), (1e4, 1.0, torch.float32), (1e6, 1.0, torch.float32),
    (1e4, 1e-3, torch.float32), (0.0, 1e-3, torch.float32), (1e6, 1e-3, torch.float64),
])  # fmt: skip
def test_large_means(device, mean, std, dtype, channels_last, regime):
    inputs = inputs_for((5, 3, 30, 31), channels_last, dtype, device, mean=mean, std=std)
    assert_agrees(*functions(), inputs)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_a_large_mean_costs_nothing(device, channels_last, regime):
    """Where torch's float32 mean is off by a thirtieth of a standard deviation, ours is exact."""
    inputs = inputs_for((5, 3, 30, 31), channels_last, torch.float32, device, mean=1e6)
    ours, theirs = functions()
    dy = torch.randn_like(inputs[0])
    results = run(ours, inputs, dy)
    exact = run(theirs, copies(inputs, torch.float64), dy.double())
    for result, truth in zip(results, exact, strict=True):
        assert error(result, truth) <= 8 * unit(truth, torch.float32)


@pytest.mark.parametrize("size", [(128, 256), (32, 64)], ids=["split", "held"])
def test_an_outlier_in_front_does_not_hurt(device, size):
    """Sums are relative to the first element at first, which need not be near the others."""
    x = torch.randn(4, 1, *size, device=device)
    x[0, 0, 0, 0] = 300.0
    y = normreg.functional.batch_norm(x, None, None, training=True).flatten()
    exact = F.batch_norm(x.double(), None, None, training=True).flatten()
    assert error(y[1:], exact[1:]) <= 8 * unit(exact[1:], torch.float32)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_many_partial_results(device, monkeypatch, training):
    """As many splits as on a large GPU, more than are merged at a time, and a last one that is shorter."""
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 64)
    shape = (2, 32, 65, 41)
    inputs = inputs_for(shape, True, torch.float32, device)
    plan = channels.plan(inputs[0])
    assert plan.grid[1] > plan.merged_splits
    assert_agrees(*functions(running_for(shape, device), training), inputs)


@pytest.mark.parametrize("value", [0.0, 3.0, 1e6, 3e38])
def test_constant_channels_give_the_bias(device, value):
    x = torch.full((3, 5, 6, 7), value, device=device, requires_grad=True)
    weight, bias = torch.randn(2, 5, device=device)
    y = normreg.functional.batch_norm(x, None, None, weight, bias, training=True)
    assert torch.equal(y, bias[:, None, None].expand_as(y))
    (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert dx.isfinite().all()


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_eps(device, dtype, eps, training):
    shape = (6, 4, 5)
    running = [torch.randn(4, device=device), torch.rand(4, device=device) * eps]
    inputs = inputs_for(shape, False, dtype, device, std=eps**0.5)
    assert_agrees(*functions(running, training, eps), inputs)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_parameters_beside_16_bits(device, dtype, training):
    shape = (9, 6, 5, 5)
    x, *parameters = inputs_for(shape, False, dtype, device)
    parameters = [t.detach().float().requires_grad_() for t in parameters]
    running = running_for(shape, device)
    dy = torch.randn(shape, device=device, dtype=dtype)

    def batch_norm(x, weight, bias):
        return normreg.functional.batch_norm(x, *copies(running), weight, bias, training=training)

    results = run(batch_norm, [x, *parameters], dy)
    exact_inputs = copies([x, *parameters], torch.float64)
    exact = run(functions([r.double() for r in running], training)[1], exact_inputs, dy.double())
    for result, truth, like in zip(results, exact, (x, x, *parameters), strict=True):
        assert_accurate(result, truth.to(like.dtype), truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("momentum", [None, 0.0, 0.1, 1.0])
def test_running_statistics(device, guarded_memory, momentum, dtype, regime):
    ours, theirs = (layer(name, 2, 5, device, dtype, momentum=momentum) for name in ("normreg", "torch"))
    exact = layer("torch", 2, 5, device, torch.float64, momentum=momentum)
    for _ in range(3):
        x = (torch.randn(70, 5, 4, 4, device=device) * 3 + 2).to(dtype)
        assert regime == "held" or channels.plan(x).grid[1] > 1
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
    """Two forwards, and buffers overwritten, before one backward."""
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


def test_two_backward_passes_are_equal(device):
    inputs = inputs_for((9, 4, 33, 32), False, torch.float32, device)
    y = functions()[0](*inputs)
    dy = torch.randn_like(y)
    first = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    second = torch.autograd.grad(y, inputs, dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_checkpoints_load_both_ways(device):
    ours, theirs = (layer(name, 2, 6, device) for name in ("normreg", "torch"))
    ours(torch.randn(4, 6, 3, 3, device=device))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_float32_statistics_beside_16_bit_parameters(device, launches, training):
    """What mixed precision of FSDP makes of a layer, and torch's operator refuses."""
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
        torch.testing.assert_close(half, full.bfloat16())  # the interpreter truncates its stores
    assert results[0][1].dtype == torch.float32
