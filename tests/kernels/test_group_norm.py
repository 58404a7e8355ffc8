"""GroupNorm: results and gradients against torch's, both judged against float64."""

import pytest
import torch
import torch.nn.functional as F
from over_channels import VIEWS, inputs_for, nothing_fits_a_tile
from support.reference import (
    DTYPES,
    LARGE_MEANS,
    RAGGED,
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
from normreg.kernels import tiling
from normreg.kernels.partition import in_splits
from normreg.ops.group_norm import group_norm as group_norm_to

# (shape, groups): groups of ragged sizes, one and several of them a tile, of one and several samples; held,
# held forward alone, split. Channels of one position, and several.
SHAPES = [
    ((2, 1), 1),
    ((3, 4), 4),
    ((5, 6), 3),
    ((37, 24), 8),
    ((70, 129), 43),
    ((17, 34), 2),
    ((3, 127, 1), 1),
    ((3, 129), 1),
    ((2, 1, 3, 5), 1),
    ((4, 3, 1, 1), 3),
    ((70, 6, 7), 3),
    ((2, 3, 7), 3),
    ((2, 8, 125), 1),
    ((3, 10, 205), 2),
    ((2, 17, 7, 7), 17),
    ((2, 40, 8, 8), 2),
    ((2, 6, 2, 3, 5), 2),
    ((1, 10, 41, 40), 2),
    ((2, 6, 90, 46), 1),
    ((1, 4, 129, 131), 4),
    ((3, 2, 2, 8200), 1),
]
every_shape = pytest.mark.parametrize(
    ("shape", "groups"), SHAPES, ids=["x".join(map(str, shape)) + f" in {groups}" for shape, groups in SHAPES]
)
IN_A_TILE = ((3, 12, 5, 4), 3)
SPLIT = ((2, 4, 5, 505), 2)  # where none is held: three tiles a group, two a channel
tile_and_split = pytest.mark.parametrize("case", [IN_A_TILE, SPLIT], ids=["tile", "split"], indirect=True)


def functions(groups, eps=1e-5):
    def of(operation):
        return lambda x, weight=None, bias=None: operation(x, groups, weight, bias, eps)

    return of(normreg.functional.group_norm), of(F.group_norm)


@pytest.fixture
def case(request, monkeypatch):
    if request.param == SPLIT:
        nothing_fits_a_tile(monkeypatch)
    return request.param


def tiles(shape, groups):
    sizes = (groups, shape[1] // groups, torch.Size(shape[2:]).numel(), False, torch.float32)
    return tiling.groups.group_norm_forward_tile(*sizes), tiling.groups.group_norm_backward_tile(*sizes)


def test_shapes_cover_the_tiles():
    chosen = [tiles(*case) for case in SHAPES]
    assert {(forward is None, backward is None) for forward, backward in chosen} == {
        (False, False),
        (False, True),
        (True, True),
    }
    held = [(tile, *case) for (tile, _), case in zip(chosen, SHAPES) if tile]
    assert {tile.samples > 1 for tile, *_ in held} == {tile.groups > 1 for tile, *_ in held} == {True, False}
    assert any(shape[0] > tile.samples > 1 and shape[0] % tile.samples for tile, shape, _ in held)
    assert any(groups > tile.groups > 1 and groups % tile.groups for tile, _, groups in held)
    elements = {shape[1] // groups * torch.Size(shape[2:]).numel() for shape, groups in SHAPES}
    assert elements >= {1, 2, 3, 17, 127, 129, 1000, 1025} & set(RAGGED)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_shape
def test_agrees_with_torch(device, guarded_memory, shape, groups, dtype):
    inputs = [guarded_memory.place(t) for t in inputs_for(shape, dtype, device)]
    assert_agrees(*functions(groups), inputs)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((5, 6), 3),
        ((3, 70), 1),
        ((7, 66, 3), 2),
        ((2, 18, 5, 5), 3),
        ((2, 17, 7, 7), 17),
        ((1, 6, 40, 60), 2),
    ],
)
def test_small_groups_that_are_split_agree(device, guarded_memory, monkeypatch, shape, groups):
    nothing_fits_a_tile(monkeypatch)
    inputs = [guarded_memory.place(t) for t in inputs_for(shape, torch.float32, device)]
    assert_agrees(*functions(groups), inputs)


@pytest.mark.parametrize("samples", [1, 31, 32, 33, 131])
def test_samples_beside_a_tile(device, guarded_memory, samples):
    shape, groups = (samples, 4, 7), 2
    assert tiles(shape, groups)[0].samples == 32
    inputs = [guarded_memory.place(t) for t in inputs_for(shape, torch.float32, device)]
    assert_agrees(*functions(groups), inputs)


@tile_and_split
@pytest.mark.parametrize("affine", ["weight", ""])
def test_absent_parameters(device, case, affine):
    shape, groups = case
    assert_agrees(*functions(groups), inputs_for(shape, torch.float32, device, affine))


@tile_and_split
def test_bias_without_weight(device, case):
    """A bias without a weight, for which torch's own backward raises `tensor does not have a device`."""
    shape, groups = case
    x, _, bias = inputs_for(shape, torch.float32, device, "bias")
    ours, theirs = functions(groups)

    def with_weight(x, bias):
        return theirs(x, torch.ones_like(bias), bias)

    assert_agrees(lambda x, bias: ours(x, None, bias), with_weight, [x, bias])


@tile_and_split
@pytest.mark.parametrize("wanted", range(1, 8), ids=lambda bits: f"{bits:03b}")
def test_gradient_of_any_subset(device, case, wanted):
    shape, groups = case
    inputs = inputs_for(shape, torch.float32, device)
    for i, t in enumerate(inputs):
        t.requires_grad_(bool(wanted >> i & 1))
    assert_agrees(*functions(groups), inputs)


@pytest.mark.parametrize(
    ("shape", "layout"),
    in_every_layout(((6, 4),), ((4, 6, 7),), ((2, 6, 3, 5),), ((4, 2, 3, 1),), ((2, 4, 2, 3, 2),)),
)
def test_gradient_layouts(device, shape, layout):
    inputs = inputs_for(shape, torch.float32, device)
    assert_agrees(*functions(2), inputs, in_layout(layout, inputs[0]))


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_input_strides(device, view):
    """assert_agrees compares the strides of y: torch keeps channels_last on a CPU, on a GPU since 2.15."""
    x = view(torch.randn(4, 4, 6, 8, device=device)).detach().requires_grad_()
    weight, bias = (torch.randn(2 * x.shape[1], device=device)[::2].requires_grad_() for _ in range(2))
    assert_agrees(*functions(2), [x, weight, bias])


@tile_and_split
@pytest.mark.parametrize(("mean", "std", "dtype"), LARGE_MEANS)
def test_large_means(device, case, mean, std, dtype):
    shape, groups = case
    assert_agrees(*functions(groups), inputs_for(shape, dtype, device, mean=mean, std=std))


@tile_and_split
def test_a_large_mean_costs_nothing(device, case):
    """Where torch's float32 mean is off by a thirtieth of a standard deviation, ours is exact."""
    shape, groups = case
    inputs = inputs_for(shape, torch.float32, device, mean=1e6)
    ours, theirs = functions(groups)
    dy = torch.randn(shape, device=device)
    results = run(ours, inputs, dy)
    exact = run(theirs, copies(inputs, torch.float64), dy.double())
    for result, truth in zip(results, exact, strict=True):
        assert error(result, truth) <= 8 * unit(truth, torch.float32)


@tile_and_split
def test_an_outlier_in_front_does_not_hurt(device, case):
    """No sum is relative to the first element of groups, which need not be near the others."""
    shape, groups = case
    x = torch.randn(shape, device=device) + 1e4
    x.view(shape[0], groups, -1)[:, :, 0] = 0.0
    assert_agrees(*functions(groups), [x.requires_grad_(), None, None])


@pytest.mark.parametrize("value", [0.0, 1e-30, 3.0, 1e6, 3e38])
@pytest.mark.parametrize(
    "case", [((3, 4), 4), IN_A_TILE, SPLIT], ids=["one element", "tile", "split"], indirect=True
)
def test_constant_groups_give_the_bias(device, case, value):
    shape, groups = case
    x = torch.full(shape, value, device=device, requires_grad=True)
    weight, bias = torch.randn(2, shape[1], device=device)
    y = normreg.functional.group_norm(x, groups, weight, bias)
    assert torch.equal(y, bias.view(-1, *[1] * (len(shape) - 2)).expand_as(y))
    (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert dx.isfinite().all()


@tile_and_split
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_eps(device, case, eps, dtype):
    shape, groups = case
    inputs = inputs_for((1, *shape[1:]), dtype, device, std=eps**0.5 or 1.0)
    assert_agrees(*functions(groups, eps), inputs)


@tile_and_split
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_parameters_beside_16_bits(device, case, dtype):
    shape, groups = case
    x, *parameters = inputs_for(shape, dtype, device)
    inputs = [x, *(t.detach().float().requires_grad_() for t in parameters)]
    ours, theirs = functions(groups)
    dy = torch.randn(shape, device=device, dtype=dtype)
    results = run(ours, inputs, dy)
    exact, near = (
        run(theirs, copies(inputs, torch.float64), moved)
        for moved in (dy.double(), nudged(dy.double(), torch.float32))
    )
    for result, truth, beside, like in zip(results, exact, near, (x, *inputs), strict=True):
        rounded, slack = truth.to(like.dtype), error(beside, truth)
        assert_accurate(result, rounded, truth, slack=slack)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_from_16_bits(device, dtype):
    """What autocast asks of the kernel: no input is cast, and only dx is rounded to 16 bits."""
    x = torch.randn(3, 6, 8, device=device, dtype=dtype, requires_grad=True)
    inputs = [x, *(torch.randn(6, device=device, requires_grad=True) for _ in range(2))]
    dy = torch.randn(3, 6, 8, device=device)
    results = run(lambda x, weight, bias: group_norm_to(x, weight, bias, 2, 1e-5, torch.float32), inputs, dy)
    exact = run(functions(2)[1], copies(inputs, torch.float64), dy.double())
    for result, truth, expected in zip(results, exact, (torch.float32, dtype, *[torch.float32] * 2)):
        assert result.dtype == expected
        assert error(result, truth) <= 4 * unit(truth, expected)


@tile_and_split
def test_a_sample_does_not_depend_on_the_others(device, case, monkeypatch):
    """Nor does the number of splits, although eight samples fill a GPU with fewer than one does."""
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 4)
    shape, groups = case
    x, weight, bias = inputs_for((8, *shape[1:]), torch.float32, device)
    ours, _ = functions(groups)
    alone = torch.cat([ours(sample[None], weight, bias) for sample in x])
    assert torch.equal(ours(x, weight, bias), alone)


def test_many_partial_sums(device, monkeypatch):
    """A large GPU's number of programs makes more partial sums than the finish adds at a time."""
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 64)
    shape, groups = (2600, 4, 3), 2
    _, tile = tiles(shape, groups)
    monkeypatch.setattr(tiling.partials, "COLUMN_SUMS_WORDS", 256)
    assert tiling.groups.group_norm_backward_programs(2600, 3, tile, 1, device) > (
        tiling.partials.column_sums_tile(4, device).rows
    )
    assert_agrees(*functions(groups), inputs_for(shape, torch.float32, device))


@pytest.mark.parametrize("shape", [(1, 600, 32), (1, 1, 33 * 4096 + 9)], ids=["of a group", "of a channel"])
def test_many_splits(device, monkeypatch, shape):
    """More splits than are merged at a time, the last of them shorter."""
    nothing_fits_a_tile(monkeypatch)
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 64)
    x = torch.empty(shape, device=device)
    rows, group = in_splits(x), in_splits(x.view(1, 1, -1), tiling.groups.group_norm_splits, 1)
    assert (group.grid[1] > rows.constants["TILE"].partials) == (shape[1] > 1)
    assert (rows.grid[1] > tiling.groups.group_norm_merge_tile(1).rows) == (shape[1] == 1)
    assert_agrees(*functions(1), inputs_for(shape, torch.float32, device))


@tile_and_split
def test_two_backward_passes_are_equal(device, case):
    shape, groups = case
    inputs = inputs_for(shape, torch.float32, device)
    y = functions(groups)[0](*inputs)
    dy = torch.randn_like(y)
    first = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    second = torch.autograd.grad(y, inputs, dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
