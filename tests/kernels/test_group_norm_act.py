"""GroupNorm and activation, contiguous and channels-last, against torch's, both judged against float64."""

import pytest
import torch
import torch.nn.functional as F
from formulas import ACTIVATIONS
from over_channels import LAST, VIEWS, nothing_fits_a_tile
from saved import bytes_beside, saved_by
from support.reference import (
    DTYPES,
    LARGE_MEANS,
    assert_agrees,
    copies,
    error,
    in_every_layout,
    in_layout,
    run,
    unit,
)
from torch._prims_common import suggest_memory_format

import normreg
from normreg.kernels import tiling
from normreg.kernels.partition import in_splits_of_samples
from normreg.ops.group_norm_act import group_norm_act as group_norm_act_to

# (shape, groups) channels-last: ragged, one and several groups and samples a tile; held, held forward alone,
# split. Channels of one position, and groups of one channel.
SHAPES = [
    ((3, 12, 5, 4), 3),
    ((37, 6, 3, 2), 3),
    ((2, 129, 3, 3), 3),
    ((3, 40, 8, 9), 4),
    ((2, 17, 7, 7), 17),
    ((2, 20, 2, 3, 5), 2),
    ((2, 100, 2, 5), 5),
    ((4, 3, 1, 2), 3),
    ((1, 8, 40, 40), 2),
    ((2, 70, 31, 33), 7),
    ((1, 6, 90, 46), 1),
]
named = ["x".join(map(str, shape)) + f" in {groups}" for shape, groups in SHAPES]
every_shape = pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=named)
SHAPE, GROUPS = (2, 20, 9, 15), 2  # where none is held: several tiles, channels that fill none


def last(t):
    return t.contiguous(memory_format=LAST[t.dim()])


def inputs_for(
    shape, device, dtype=torch.float32, channels_last=True, affine="weight bias", mean=0.0, std=1.0
):
    x = (torch.randn(shape, device=device, dtype=torch.float64) * std + mean).to(dtype)
    x = (last(x) if channels_last else x).requires_grad_()
    weight, bias = (
        torch.randn(shape[1], device=device, dtype=dtype, requires_grad=True) if name in affine else None
        for name in ("weight", "bias")
    )
    return [x, weight, bias]


def functions(act, groups, eps=1e-5):
    """normreg's and torch's function of (x, weight, bias); torch's in x's format on every device."""

    def ours(x, weight=None, bias=None):
        options = dict(act=act, negative_slope=0.3)
        return normreg.functional.group_norm_act(x, groups, weight, bias, eps, **options)

    def theirs(x, weight=None, bias=None):
        if weight is None and bias is not None:  # torch's own backward raises
            weight = torch.ones_like(bias)
        # torch's own of channels_last has E[x^2] - E[x]^2, and its backward crashes where dx is not wanted
        y = ACTIVATIONS[act](F.group_norm(x.contiguous(), groups, weight, bias, eps))
        return y.contiguous(memory_format=suggest_memory_format(x))

    return ours, theirs


def tiles(shape, groups):
    sizes = groups, shape[1] // groups, torch.Size(shape[2:]).numel(), True, torch.float32
    return tiling.groups.group_norm_forward_tile(*sizes), tiling.groups.group_norm_backward_tile(*sizes)


@pytest.fixture(params=["tile", "split"])
def regime(request, monkeypatch):
    if request.param == "split":
        nothing_fits_a_tile(monkeypatch)
    return request.param


both_formats = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])


def test_shapes_cover_the_tiles():
    chosen = [tiles(*case) for case in SHAPES]
    held = {(forward is None, backward is None) for forward, backward in chosen}
    assert held == {(False, False), (False, True), (True, True)}
    held = [(tile, *case) for (tile, _), case in zip(chosen, SHAPES) if tile]
    assert any(shape[0] > tile.samples > 1 and shape[0] % tile.samples for tile, shape, _ in held)
    assert any(groups > tile.groups > 1 and groups % tile.groups for tile, _, groups in held)
    assert {tile.groups > 1 for tile, *_ in held} == {True, False}


@every_shape
def test_channels_last_agrees_with_torch(device, guarded_memory, launches, shape, groups):
    inputs = [guarded_memory.place(t) for t in inputs_for(shape, device)]
    _, dx, *_ = assert_agrees(*functions("silu", groups), inputs)
    assert dx.stride() == inputs[0].stride()
    forward, backward = tiles(shape, groups)
    assert len(launches) == (1 if forward else 3) + (2 if backward else 4)


@both_formats
@pytest.mark.parametrize("act", ACTIVATIONS, ids=str)
def test_every_activation(device, guarded_memory, act, channels_last, regime):
    inputs = [guarded_memory.place(t) for t in inputs_for(SHAPE, device, channels_last=channels_last)]
    assert_agrees(*functions(act, GROUPS), inputs)


@both_formats
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ["silu", "relu"])
def test_every_dtype(device, act, dtype, channels_last, regime):
    assert_agrees(*functions(act, GROUPS), inputs_for(SHAPE, device, dtype, channels_last))


@both_formats
@pytest.mark.parametrize("affine", ["weight", "bias", ""])
def test_absent_parameters(device, affine, channels_last, regime):
    inputs = inputs_for(SHAPE, device, channels_last=channels_last, affine=affine)
    assert_agrees(*functions("silu", GROUPS), inputs)


@both_formats
@pytest.mark.parametrize("wanted", range(1, 8), ids=lambda bits: f"{bits:03b}")
def test_gradient_of_any_subset(device, wanted, channels_last, regime):
    inputs = inputs_for((2, 6, 5, 4), device, channels_last=channels_last)
    for i, t in enumerate(inputs):
        t.requires_grad_(bool(wanted >> i & 1))
    assert_agrees(*functions("silu", 2), inputs)


@both_formats
@pytest.mark.parametrize(("shape", "layout"), in_every_layout(((2, 6, 3, 5),), ((2, 4, 2, 3, 2),)))
def test_gradient_layouts(device, shape, layout, channels_last, regime):
    inputs = inputs_for(shape, device, channels_last=channels_last)
    assert_agrees(*functions("silu", 2), inputs, in_layout(layout, inputs[0]))


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_input_strides(device, view):
    x = view(torch.randn(4, 4, 6, 8, device=device)).detach().requires_grad_()
    weight, bias = (torch.randn(2 * x.shape[1], device=device)[::2].requires_grad_() for _ in range(2))
    assert_agrees(*functions("silu", 2), [x, weight, bias])


@pytest.mark.parametrize(("mean", "std", "dtype"), LARGE_MEANS)
def test_large_means(device, mean, std, dtype, regime):
    assert_agrees(*functions(None, GROUPS), inputs_for(SHAPE, device, dtype, mean=mean, std=std))


def test_a_large_mean_costs_nothing(device, regime):
    """Where torch's float32 mean is off by a thirtieth of a standard deviation, ours is exact."""
    inputs = inputs_for(SHAPE, device, mean=1e6)
    ours, theirs = functions("silu", GROUPS)
    dy = torch.randn(SHAPE, device=device)
    results = run(ours, inputs, dy)
    exact = run(theirs, copies(inputs, torch.float64), dy.double())
    for result, truth in zip(results, exact, strict=True):
        assert error(result, truth) <= 8 * unit(truth, torch.float32)


@pytest.mark.parametrize("outlier", ["element", "channel"])
@pytest.mark.parametrize("channel", [0, 3])
def test_an_outlier_does_not_hurt(device, channel, outlier, regime):
    """No sum is relative to one element or channel, which need not be near the others."""
    x = torch.randn((1, 130, 9, 5), device=device) + 1e4
    if outlier == "channel":
        x[:, channel] = 0.0
    else:
        x[:, channel, 0, 0] = 0.0
    assert_agrees(*functions(None, 1), [last(x).requires_grad_(), None, None])


@pytest.mark.parametrize("value", [0.0, 1e-30, 3.0, 1e6, 3e38])
def test_constant_groups_give_the_bias(device, value, regime):
    x = last(torch.full(SHAPE, value, device=device)).requires_grad_()
    weight, bias = torch.randn(2, SHAPE[1], device=device)
    y = normreg.functional.group_norm_act(x, GROUPS, weight, bias, act=None)
    assert torch.equal(y, bias.view(-1, 1, 1).expand_as(y))
    (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert dx.isfinite().all()


@both_formats
def test_constant_groups_of_huge_values(device, channels_last, regime):
    """z overflows where a tile has no element, and that must not reach the sums."""
    x = torch.full((2, 6, 5, 7), 3e38, device=device)
    x = (last(x) if channels_last else x).requires_grad_()
    weight, bias = (torch.ones(6, device=device, requires_grad=True) for _ in range(2))
    y = normreg.functional.group_norm_act(x, 2, weight, bias)
    gradients = torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y))
    assert all(gradient.isfinite().all() for gradient in gradients)


@both_formats
def test_a_sample_does_not_depend_on_the_others(device, channels_last, regime):
    x, weight, bias = inputs_for((5, *SHAPE[1:]), device, channels_last=channels_last)
    ours, _ = functions("silu", GROUPS)
    alone = torch.cat([ours(sample, weight, bias) for sample in x.split(1)])
    assert torch.equal(ours(x, weight, bias), alone)


def test_two_backward_passes_are_equal(device, regime):
    inputs = inputs_for(SHAPE, device)
    y = functions("silu", GROUPS)[0](*inputs)
    dy = torch.randn_like(y)
    first = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    second = torch.autograd.grad(y, inputs, dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_many_splits(device, monkeypatch):
    """More splits, and more channels of a group, than are merged at a time."""
    nothing_fits_a_tile(monkeypatch)
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 132)
    inputs = inputs_for((1, 70, 48, 51), device)
    merged = tiling.groups.group_norm_merge_tile(70)
    splits = in_splits_of_samples(inputs[0]).splits
    monkeypatch.setattr(tiling.groups, "group_norm_merge_tile", lambda _: merged._replace(rows=4))
    assert splits > 4
    assert merged.cols < 70
    assert_agrees(*functions("silu", 1), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_from_16_bits(device, dtype, regime):
    """What autocast asks of the kernel: no input is cast, and only dx is rounded to 16 bits."""
    x, weight, bias = inputs_for(SHAPE, device, dtype)
    inputs = [x, *(t.detach().float().requires_grad_() for t in (weight, bias))]
    dy = last(torch.randn(SHAPE, device=device))

    def ours(x, weight, bias):
        return group_norm_act_to(x, weight, bias, "silu", 0.0, GROUPS, 1e-5, torch.float32)

    results = run(ours, inputs, dy)
    exact = run(functions("silu", GROUPS)[1], copies(inputs, torch.float64), dy.double())
    for result, truth, expected in zip(results, exact, (torch.float32, dtype, *[torch.float32] * 2)):
        assert result.dtype == expected
        assert error(result, truth) <= 4 * unit(truth, expected)


def test_what_is_kept(device):
    x, weight, bias = inputs_for((3, 4, 2, 5), device)
    for act, kept in (("silu", (x, weight, bias)), (None, (x, weight))):
        _, saved = saved_by(lambda act=act: normreg.functional.group_norm_act(x, 2, weight, bias, act=act))
        assert {t.data_ptr() for t in saved} >= {t.data_ptr() for t in kept}
        assert bytes_beside(saved, *kept) == 4 * 3 * 2 * 3


# What torch computes.


def test_refused_calls_are_torchs(device, launches, monkeypatch):
    monkeypatch.setattr(normreg.functional.dispatch.cpu, "KERNELS", None)
    x, weight, bias = inputs_for(SHAPE, torch.device("cpu"))
    y = normreg.functional.group_norm_act(x, GROUPS, weight, bias)
    assert torch.equal(y, F.silu(F.group_norm(x, GROUPS, weight, bias)))
    assert y.stride() == x.stride()
    assert not launches
