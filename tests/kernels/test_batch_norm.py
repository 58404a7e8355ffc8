"""BatchNorm: results and gradients against torch's, both judged against float64."""

import pytest
import torch
import torch.nn.functional as F
from batch_norms import inputs_for, running_for
from over_channels import regime as regime
from support.reference import (
    DTYPES,
    LARGE_MEANS,
    assert_accurate,
    assert_agrees,
    copies,
    error,
    in_every_layout,
    in_layout,
    nudged,
    run,
    unit,
)

import normreg
from normreg.kernels import launch, tiling
from normreg.kernels.partition import in_splits

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


def functions(running=(None, None), training=True, eps=1e-5):
    """normreg's and torch's function of (x, weight, bias); training changes copies of the buffers."""

    def calls(batch_norm):
        def call(x, weight, bias):
            buffers = [None if buffer is None else buffer.to(x.dtype, copy=training) for buffer in running]
            return batch_norm(x, *buffers, weight, bias, training=training, momentum=0.3, eps=eps)

        return call

    return calls(normreg.functional.batch_norm), calls(F.batch_norm)


def test_shapes_cover_the_partitions(device):
    partitions = [in_splits(torch.empty(shape, device=device)) for shape, _ in SHAPES]
    assert {partition.grid[0] > 1 for partition in partitions} == {True, False}, "channel blocks"
    assert {partition.grid[1] > 1 for partition in partitions} == {True, False}, "splits"
    assert {partition.sizes[4] > 1 for partition in partitions} == {True, False}, "tiles a split"
    samples = {(p.constants["TILE"].samples > 1, p.sizes[3] > 1) for p in partitions}
    assert (True, True) in samples, "several tiles of several samples"
    assert {partition.constants["TILE"].vector for partition in partitions} >= {1, 2, 8}


@pytest.mark.parametrize(
    ("regime", "dtype"),
    [*(("tile", dtype) for dtype in DTYPES), ("split", torch.bfloat16), ("split", torch.float32)],
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
@pytest.mark.parametrize(
    ("shape", "channels_last", "layout"),
    in_every_layout(
        ((6, 5), False),
        ((4, 3, 7), False),
        ((5, 17, 3, 3), False),
        ((5, 17, 3, 3), True),
        ((4, 1, 3, 2), False),
        ((4, 1, 3, 2), True),
        ((4, 3, 1, 1), False),
        ((2, 3, 2, 3, 2), False),
        ((2, 3, 2, 3, 2), True),
    ),
)
def test_gradient_layouts(device, shape, channels_last, layout, training):
    inputs = inputs_for(shape, channels_last, torch.float32, device)
    dy = in_layout(layout, inputs[0])
    assert_agrees(*functions(running_for(shape, device), training), inputs, dy)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x[..., ::2],
        lambda x: x[:, ::2],
        lambda x: x.flip(1),
        lambda x: x.transpose(2, 3),
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, 1:],
    ],
    ids=[
        "batch and channels swapped",
        "cols sliced",
        "channels sliced",
        "flipped",
        "plane transposed",
        "expanded",
        "channels_last sliced",
    ],
)
def test_input_strides(device, view):
    x = view(torch.randn(4, 4, 6, 8, device=device)).detach().requires_grad_()
    weight, bias = (torch.randn(2 * x.shape[1], device=device)[::2].requires_grad_() for _ in range(2))
    assert_agrees(*functions(), [x, weight, bias])


def test_channels_last_is_what_torch_calls_so(device):
    """Sequences (N, L, C) as images of width 1, whose stride there is not that of channels_last."""
    x = torch.randn(2, 6, 4, device=device).transpose(1, 2).unsqueeze(-1)
    assert x.is_contiguous(memory_format=torch.channels_last)
    y = normreg.functional.batch_norm(x, None, None, training=True)
    assert y.stride() == x.stride()
    torch.testing.assert_close(y, F.batch_norm(x.contiguous(), None, None, training=True))


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("mean", "std", "dtype"), LARGE_MEANS)
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


@pytest.mark.parametrize("size", [(128, 256), (32, 64)], ids=["split", "tile"])
def test_an_outlier_in_front_does_not_hurt(device, size):
    """Sums are relative to the first element at first, which need not be near the others."""
    x = torch.randn(4, 1, *size, device=device)
    x[0, 0, 0, 0] = 300.0
    y = normreg.functional.batch_norm(x, None, None, training=True).flatten()
    exact = F.batch_norm(x.double(), None, None, training=True).flatten()
    assert error(y[1:], exact[1:]) <= 8 * unit(exact[1:], torch.float32)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_many_partial_results(device, monkeypatch, training):
    """A large GPU's number of splits, more than are merged at a time, the last of them shorter."""
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 64)
    shape = (2, 32, 65, 41)
    inputs = inputs_for(shape, True, torch.float32, device)
    partition = in_splits(inputs[0])
    assert partition.grid[1] > partition.constants["TILE"].partials
    assert_agrees(*functions(running_for(shape, device), training), inputs)


def test_tiles_are_added_up_in_parts(device, monkeypatch):
    """Sums of more tiles than a thread adds up at once, whose means differ."""
    whole = tiling.channels.batch_norm_split_tile
    monkeypatch.setattr(
        tiling.channels, "batch_norm_split_tile", lambda *sizes: whole(*sizes)._replace(tiles=2)
    )
    launch.forget()
    try:
        x, *parameters = inputs_for((9, 2, 65, 71), True, torch.float32, device)
        with torch.no_grad():
            x += torch.arange(9, device=device).view(-1, 1, 1, 1)
        _, tiles_per_split = in_splits(x).sizes[-2:]
        assert tiles_per_split > 2
        assert_agrees(*functions(running_for(x.shape, device), True), (x, *parameters))
    finally:
        launch.forget()


@pytest.mark.parametrize("value", [0.0, 3.0, 1e6, 3e38])
def test_constant_channels_give_the_bias(device, value):
    x = torch.full((3, 5, 6, 7), value, device=device, requires_grad=True)
    weight, bias = torch.randn(2, 5, device=device)
    y = normreg.functional.batch_norm(x, None, None, weight, bias, training=True)
    assert torch.equal(y, bias[:, None, None].expand_as(y))
    (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert dx.isfinite().all()


def test_sums_of_squares_up_to_the_largest_number(device, regime):
    """126 squares of some 2^120 of each channel: their sums are about half the largest number of float32."""
    x = torch.randn(1, 64, 126, device=device)
    y, of_large = (
        normreg.functional.batch_norm(t, None, None, training=True, eps=1e-30) for t in (x, x * 2.0**60)
    )
    torch.testing.assert_close(of_large, y, rtol=1e-6, atol=1e-6)


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
    _, exactly = functions([r.double() for r in running], training)
    exact = run(exactly, exact_inputs, dy.double())
    moved = run(exactly, exact_inputs, nudged(dy.double(), torch.float32))
    for result, truth, near, like in zip(results, exact, moved, (x, x, *parameters), strict=True):
        assert_accurate(result, truth.to(like.dtype), truth, slack=2 * error(near, truth))


def test_two_backward_passes_are_equal(device):
    inputs = inputs_for((9, 4, 33, 32), False, torch.float32, device)
    y = functions()[0](*inputs)
    dy = torch.randn_like(y)
    first = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    second = torch.autograd.grad(y, inputs, dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
