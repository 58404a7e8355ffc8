"""Dropout of whole channels and samples, and alpha dropout: masks, layouts, rates."""

import math

import formulas
import pytest
import torch
from dropout_forms import FORMS, assert_result, every_form, generator_of, layouts, mask_of
from operations import OURS
from support.reference import DTYPES, RAGGED, gradient_layouts

from normreg import functional
from normreg.kernels import dropout as kernels
from normreg.kernels import launch, tiling


def assert_agrees(form, x, dy):
    """y and dx against the formula with the mask that the generator decides."""
    x = x.detach().requires_grad_()
    before = x.detach().clone(), dy.clone()
    y = form(OURS, x, generator=generator_of(x.device))
    (dx,) = torch.autograd.grad(y, x, dy)
    kept = mask_of(form, x)
    assert_result(form, y, before[0], kept)
    assert_result(form, dx, before[1], kept, linear=True)
    assert torch.equal(x, before[0])
    assert torch.equal(dy, before[1])
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_form
def test_agrees_with_the_formula(device, guarded_memory, form, dtype):
    x, dy = (guarded_memory.place(torch.randn(form.shapes[0], device=device).to(dtype)) for _ in range(2))
    assert_agrees(form, x, dy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("positions", [*RAGGED, 2048, 2056, 5000])
@pytest.mark.parametrize("name", ["dropout1d", "drop_path"])
def test_groups_of_every_size(device, guarded_memory, name, positions, dtype):
    form = FORMS[name]
    shape = (37, positions) if form.leading == 1 else (3, 13, positions)
    x, dy = (guarded_memory.place(torch.randn(shape, device=device).to(dtype)) for _ in range(2))
    assert_agrees(form, x, dy)


@pytest.mark.parametrize("groups", [*RAGGED, 2048, 4099])
def test_any_number_of_groups(device, guarded_memory, groups):
    x, dy = (guarded_memory.place(torch.randn(groups, 3, device=device)) for _ in range(2))
    assert_agrees(FORMS["drop_path"], x, dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("channels", "spatial"),
    [
        (2, (2, 1)),
        (3, (17, 33)),
        (17, (7, 7)),
        (64, (1, 3)),
        (65, (2, 17)),
        (136, (4, 4)),
    ],
    ids=str,
)
def test_channels_last(device, guarded_memory, launches, channels, spatial, dtype):
    """A channels_last tensor has the mask of the contiguous one, without a copy."""
    x, dy = (
        guarded_memory.place(
            torch.randn(3, channels, *spatial, device=device).to(dtype, memory_format=torch.channels_last)
        )
        for _ in range(2)
    )
    form = FORMS["dropout2d"]
    y = assert_agrees(form, x, dy)
    assert y.stride() == x.stride()
    assert torch.equal(y, form(OURS, x.contiguous(), generator=generator_of(device)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "contiguous", None)
        form(OURS, x)
    assert set(launches) == {"dropout_grouped_kernel", "dropout_kernel"}  # the latter for the reference


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["dropout", "alpha_dropout"])
@pytest.mark.parametrize(
    ("channels", "spatial"),
    [(2, (2, 4)), (3, (17, 24)), (17, (8, 8)), (72, (16, 16)), (136, (4, 4)), (20, (2, 3, 4))],
    ids=str,
)
def test_channels_last_elements(device, guarded_memory, launches, name, channels, spatial, dtype):
    """Decisions of a channels_last tensor are those of the contiguous one, without a copy."""
    last = torch.channels_last if len(spatial) == 2 else torch.channels_last_3d
    shape = (3, channels, *spatial)
    x, dy = (
        guarded_memory.place(torch.randn(shape, device=device).to(dtype, memory_format=last))
        for _ in range(2)
    )
    form = FORMS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "contiguous", None)
        leaf = x.detach().requires_grad_()
        y = form(OURS, leaf, generator=generator_of(device))
        (dx,) = torch.autograd.grad(y, leaf, dy)
    assert launches == ["dropout_channels_last_kernel"] * 2
    assert y.stride() == dx.stride() == x.stride()
    leaf = x.detach().contiguous().requires_grad_()
    expected = form(OURS, leaf, generator=generator_of(device))
    assert torch.equal(y, expected)
    assert torch.equal(dx, torch.autograd.grad(expected, leaf, dy.contiguous())[0])


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("spatial", [(7, 7), (2, 8)], ids=str)
def test_channels_last_elements_as_they_come(device, spatial, inplace):
    """7x7 positions, of which a Philox call would reach into the next channel, are copied; y lies like x."""
    x = torch.randn(3, 8, *spatial, device=device).bfloat16().to(memory_format=torch.channels_last)
    given, strides = x.clone(), x.stride()
    y = functional.dropout(x, 0.4, True, inplace, generator=generator_of(device))
    assert (y is x) == inplace
    assert y.stride() == strides
    assert torch.equal(y, functional.dropout(given.contiguous(), 0.4, generator=generator_of(device)))


def strides(tensor):
    """Strides of the dimensions that have more than one element."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride()) if size > 1]


@every_form
def test_layout_changes_neither_mask_nor_gradient(device, form):
    x = torch.randn(form.shapes[0], device=device)
    dy = torch.randn_like(x)
    y, dx = None, None
    for layout, view in layouts(form, x):
        for gradient_layout, dy_view in layouts(form, dy):
            leaf = view.detach().requires_grad_()
            result = form(OURS, leaf, generator=generator_of(device))
            (gradient,) = torch.autograd.grad(result, leaf, dy_view)
            y, dx = (result.detach(), gradient) if y is None else (y, dx)
            assert torch.equal(result, y), layout
            assert torch.equal(gradient, dx), (layout, gradient_layout)
            assert strides(result) == strides(form(formulas, leaf)), layout


@every_form
def test_gradient_layouts(device, form):
    x = torch.randn(form.shapes[0], device=device, requires_grad=True)
    for layout, dy in gradient_layouts(x):
        y = form(OURS, x)
        dx, plain = (torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in (dy, dy.contiguous()))
        assert torch.equal(dx, plain), layout


@pytest.mark.parametrize(
    "name", ["dropout1d", "dropout1d of one sample", "feature_alpha_dropout", "drop_path"]
)
def test_groups_are_kept_or_dropped_whole(device, name):
    form = FORMS[name]
    x = torch.full((64, 32, 9)[-len(form.shapes[0]) :], 3.0, device=device)
    y = form(OURS, x, 0.5)
    groups = y.flatten(form.leading)
    assert (groups == groups[..., :1]).all()
    assert len(groups.unique()) == 2


@pytest.mark.parametrize("tile", [(4, 64), (64, 4), (1, 128)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_tiles_do_not_change_the_mask(device, monkeypatch, memory_format, tile):
    x = torch.randn(2, 37, 5, 13, device=device).contiguous(memory_format=memory_format)
    y = FORMS["dropout2d"](OURS, x, generator=generator_of(device))
    monkeypatch.setattr(tiling.elements, "dropout_grouped_tile", lambda *_: tiling.rows.RowTile(*tile, 4))
    launch.forget()
    assert torch.equal(FORMS["dropout2d"](OURS, x, generator=generator_of(device)), y)


@pytest.mark.parametrize(
    ("memory_format", "p"),
    [
        *((torch.contiguous_format, p) for p in (0.004, 0.1, 0.5, 0.9, 0.997)),
        (torch.channels_last, 0.1),
    ],
    ids=str,
)
def test_rate_of_groups(device, memory_format, p):
    x = torch.ones(64, 512, 1, 2, device=device).contiguous(memory_format=memory_format)
    kept = FORMS["dropout2d"](OURS, x, p)[..., 0] != 0
    n = kept.numel()
    # binomial: four standard deviations
    assert abs(kept.sum().item() - n * (1 - p)) <= 4 * math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("name", ["dropout1d", "drop_path"])
def test_neighbouring_groups_are_independent(device, name):
    form = FORMS[name]
    shape = (64, 512, 2) if form.leading == 2 else (2**15, 2)
    kept = (form(OURS, torch.ones(shape, device=device), 0.5) != 0)[..., 0].flatten()
    for lag in (1, 2, 3, 4, 8, 512, 2048):
        same = (kept[lag:] == kept[:-lag]).sum().item()
        n = kept.numel() - lag
        assert abs(same - n / 2) <= 4 * math.sqrt(n) / 2, f"lag {lag}"
    # the four fields of each Philox call: 16 patterns, equally likely
    patterns = (kept.view(-1, 4) * torch.tensor([8, 4, 2, 1], device=device)).sum(1)
    counts = patterns.bincount(minlength=16).double()
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum().item()
    assert chi_square < 44  # of 15 degrees of freedom: exceeded once in ten thousand


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("alpha_dropout", (2**18,)),
        ("feature_alpha_dropout", (2**9, 2**7, 4)),
    ],
)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_alpha_keeps_mean_and_variance(device, name, shape, p):
    y = FORMS[name](OURS, torch.randn(shape, device=device), p).double()
    decisions = math.prod(shape[:2])
    # four standard errors, as many independent values as there are decisions
    assert abs(y.mean().item()) < 4 * y.std().item() / math.sqrt(decisions)
    assert abs((y**2).mean().item() - 1) < 4 * (y**2).std().item() / math.sqrt(decisions)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("p", [1e-8, 1e-5, 0.01, 1 / 3, 0.5, 0.77, 1 - 1e-5])
def test_constants_are_exact_for_the_rounded_p(p, bits):
    """The first two moments of y, for an x of mean 0 and variance 1 (or, without alpha, of any mean)."""
    for constants in (kernels.scaled, kernels.alpha):
        keep_threshold, scale, shift, dropped = kernels.layer_constants(p, bits, constants, False)
        keep = keep_threshold / 2**bits
        if constants is kernels.scaled:
            assert math.isclose(keep * scale, 1, rel_tol=2**-52)
            assert (shift, dropped) == (0, 0)
            continue
        assert math.isclose(keep * shift, (1 - keep) * dropped, rel_tol=1e-12)
        second = keep * (scale**2 + shift**2) + (1 - keep) * dropped**2
        assert math.isclose(second, 1, rel_tol=1e-12)
        linear = kernels.layer_constants(p, bits, constants, linear=True)
        assert linear == (keep_threshold, scale, 0, 0)
