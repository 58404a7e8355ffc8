"""Every form of dropout: whole channels, whole samples, alpha; and the generator that all of them take."""

import itertools
import math
import warnings

import formulas
import pytest
import torch
import torch.nn.functional as F
from operations import FUNCTIONS, OURS, Dropout
from reference import DTYPES, RAGGED, gradient_layouts
from torch.utils.checkpoint import checkpoint

import normreg
from normreg.kernels import cpu, dtypes, launch, tiling
from normreg.kernels import dropout as kernels
from normreg.ops import seed

P = 0.25  # a multiple of 2^-16, so that nothing is rounded

FORMS = {name: row for name, row in FUNCTIONS.items() if isinstance(row, Dropout)}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
INPLACE = {name: form for name, form in FORMS.items() if form.name != "drop_path"}
every_inplace_form = pytest.mark.parametrize("form", INPLACE.values(), ids=INPLACE)


def decisions(form, x):
    """The shape of the mask."""
    if form.leading is None:
        return x.shape
    return (*x.shape[: form.leading], *(1,) * (x.dim() - form.leading))


def generator_of(device, state=7):
    return torch.Generator(device).manual_seed(state)


def mask_of(form, x, p=P, state=7):
    """Which elements a generator in this state keeps: `test_dropout.py` has tested the numbers."""
    shape = decisions(form, x)
    # groups take 32 bits in every dtype
    dtype = x.dtype if math.prod(shape) == x.numel() else torch.float32
    seed_ = seed.draw(x.device, generator_of(x.device, state))
    ones = torch.ones(math.prod(shape), dtype=dtype, device=x.device)
    return (kernels.dropout(ones, p, seed_) != 0).view(shape).expand(x.shape)


def expected(form, x, kept, p=P, linear=False):
    """The formula in float64."""
    scale, shift, dropped = 1 / (1 - p), 0.0, 0.0
    if form.alpha:
        alpha = -1.0507009873554805 * 1.6732632423543772
        scale = ((1 - p) * (1 + p * alpha**2)) ** -0.5
        shift, dropped = -scale * alpha * p, scale * alpha * (1 - p)
    elif not form.scaled:
        scale = 1.0
    if linear:
        shift = dropped = 0.0
    return torch.where(kept, x.double() * scale + shift, dropped)


def assert_result(form, result, x, kept, linear=False):
    # one rounding, or truncation in the interpreter
    limits = torch.finfo(x.dtype)
    tolerance = dict(rtol=limits.eps, atol=limits.eps * limits.smallest_normal)
    if form.alpha and not linear:
        # the sum may cancel: its terms are rounded at their own size, of at most 4
        tolerance["atol"] = 4 * torch.finfo(dtypes.compute_dtype(x.dtype)).eps
    torch.testing.assert_close(result.double(), expected(form, x, kept, linear=linear), **tolerance)


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
@pytest.mark.parametrize(("channels", "spatial"), [
    (2, (2, 1)), (3, (17, 33)), (17, (7, 7)), (64, (1, 3)), (65, (2, 17)), (136, (4, 4)),
], ids=str)  # fmt: skip
def test_channels_last(device, guarded_memory, launches, channels, spatial, dtype):
    """The mask of the contiguous tensor, without a copy."""
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


def layouts(form, x):
    """(name, tensor of the same values) in every layout."""
    yield "contiguous", x.clone()
    yield "transposed", x.transpose(0, -1).contiguous().transpose(0, -1)
    yield "sliced", torch.stack([x, x], -1)[..., 0]
    yield "offset", torch.stack([x, x])[1]
    for dims, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.dim() == dims:
            yield "channels_last", x.contiguous(memory_format=memory_format)
            yield (
                "sliced channels_last",
                torch.cat([x, x], 1).contiguous(memory_format=memory_format)[:, : x.shape[1]],
            )
            yield (
                "channels_last across",
                x.transpose(2, 3).contiguous(memory_format=memory_format).transpose(2, 3),
            )


def strides(tensor):
    """Those of dimensions in which there is a next element."""
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
    monkeypatch.setattr(tiling.elements, "dropout_grouped_tile", lambda *_: tiling.elements.GroupTile(*tile))
    launch.forget_plans()
    assert torch.equal(FORMS["dropout2d"](OURS, x, generator=generator_of(device)), y)


@pytest.mark.parametrize(("memory_format", "p"), [
    *((torch.contiguous_format, p) for p in (0.004, 0.1, 0.5, 0.9, 0.997)), (torch.channels_last, 0.1),
], ids=str)  # fmt: skip
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


@pytest.mark.parametrize(("name", "shape"), [
    ("alpha_dropout", (2**18,)), ("feature_alpha_dropout", (2**9, 2**7, 4)),
])  # fmt: skip
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_form
def test_p_one(device, form, dtype):
    x = torch.randn(form.shapes[0], device=device, dtype=dtype)
    x.view(-1)[:3] = torch.tensor([math.inf, -math.inf, math.nan])
    x.requires_grad_()
    y = form(OURS, x, 1.0)
    (dx,) = torch.autograd.grad(y, x, torch.full_like(x, math.inf))
    assert torch.equal(y, torch.zeros_like(x))
    assert torch.equal(dx, torch.zeros_like(x))
    finite = torch.randn(form.shapes[0], device=device, dtype=dtype)
    assert torch.equal(form(OURS, finite, 1.0), form(formulas, finite, 1.0))


@every_form
def test_p_zero_and_evaluation_return_the_input(device, form, launches):
    x = torch.randn(form.shapes[0], device=device)
    function = getattr(normreg.functional, form.name)
    state = rng_state(device)
    for y in (
        form(OURS, x, 0.0),
        function(x, 0.5, training=False),
        form(OURS, x, 0.0, generator=generator_of(device)),
    ):
        # torch's dropout1d and dropout3d of one sample return a view of it
        assert y is x or (form.leading == 1 and y.data_ptr() == x.data_ptr() and y.shape == x.shape)
    assert torch.equal(rng_state(device), state)
    assert launches == []


@every_form
def test_dropped_inf_and_nan_are_gone(device, form):
    x = torch.full(form.shapes[0], math.nan, device=device)
    x.view(-1)[::2] = math.inf
    kept = mask_of(form, x)
    for some in (kept, ~kept):
        assert x[some].isnan().any()
        assert x[some].isinf().any()
    finite = form(OURS, torch.zeros(form.shapes[0], device=device), generator=generator_of(device))
    for layout, view in layouts(form, x):
        y = form(OURS, view, generator=generator_of(device))
        assert torch.equal(y[kept].nan_to_num(7.0), x[kept].nan_to_num(7.0)), layout
        assert torch.equal(y[~kept], finite[~kept]), layout


@every_form
def test_the_sign_of_zero_is_torchs(device, form):
    if not form.alpha:
        y = form(OURS, torch.full(form.shapes[0], -0.0, device=device), generator=generator_of(device))
        assert (y == 0).all()
        assert torch.equal(y.signbit(), mask_of(form, y))


@every_inplace_form
def test_inplace(device, form):
    for _, leaf in layouts(form, torch.randn(form.shapes[0], device=device)):
        leaf = leaf.detach().requires_grad_()
        x = leaf * 1  # in the layout of leaf; a view of it would go to torch
        before, version = x.detach().clone(), x._version
        y = form(OURS, x, inplace=True, generator=generator_of(device))
        assert y is x
        assert x.shape == before.shape
        assert x._version > version
        kept = mask_of(form, before)
        assert_result(form, x, before, kept)
        dy = torch.randn_like(x)
        (dx,) = torch.autograd.grad(x, leaf, dy)
        assert_result(form, dx, dy, kept, linear=True)


@every_inplace_form
def test_inplace_without_gradient(device, form):
    x = torch.randn(form.shapes[0], device=device)
    before, version = x.clone(), x._version
    assert form(OURS, x, inplace=True, generator=generator_of(device)) is x
    assert x._version == version + 1
    assert_result(form, x, before, mask_of(form, x))


@every_form
def test_nothing_is_saved(device, form):
    saved = []
    x = torch.randn(form.shapes[0], device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        form(OURS, x)
    assert saved == []


@every_form
def test_backward_twice_and_double_backward(device, form):
    x = torch.randn(form.shapes[0], device=device, requires_grad=True)
    dy = torch.randn(form.shapes[0], device=device, requires_grad=True)
    y = form(OURS, x, generator=generator_of(device))
    first, second = (torch.autograd.grad(y, x, dy, create_graph=create)[0] for create in (True, True))
    assert torch.equal(first, second)
    direction = torch.randn_like(x)
    (ddy,) = torch.autograd.grad(first, dy, direction)
    assert_result(form, ddy, direction, mask_of(form, x), linear=True)


@every_form
def test_a_seed_in_memory_is_the_same_as_its_number(device, form):
    x = torch.randn(form.shapes[0], device=device)
    seed_ = 2**61 + 12345
    in_memory = torch.tensor(seed_, device=device)
    options = dict(leading=form.leading, constants=kernels.alpha if form.alpha else kernels.scaled)
    assert torch.equal(kernels.dropout(x, P, in_memory, **options), kernels.dropout(x, P, seed_, **options))


@pytest.mark.parametrize("use_reentrant", [True, False])
@every_form
def test_activation_checkpointing_recomputes_the_mask(device, form, use_reentrant):
    x = torch.randn(form.shapes[0], device=device, requires_grad=True)
    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(11)
        block = lambda x: form(OURS, x * 2) ** 2  # noqa: E731
        y = checkpoint(block, x, use_reentrant=use_reentrant) if checkpointed else block(x)
        x.grad = None
        y.sum().backward()
        grads.append(x.grad)
    assert torch.equal(grads[0], grads[1])


def rng_state(device):
    return (torch.cuda if device.type == "cuda" else torch).get_rng_state()


@every_form
def test_a_generator_decides_the_mask_and_the_default_one_does_not(device, form):
    x = torch.randn(form.shapes[0], device=device)
    generator = generator_of(device)
    state = rng_state(device)
    first, second = (form(OURS, x, generator=generator) for _ in range(2))
    assert torch.equal(rng_state(device), state)
    assert not torch.equal(first, second)
    torch.manual_seed(99)
    generator.manual_seed(7)
    assert torch.equal(form(OURS, x, generator=generator), first)
    assert torch.equal(form(OURS, x, generator=generator), second)
    assert not torch.equal(form(OURS, x, generator=generator_of(device, 8)), first)


@every_form
def test_manual_seed_decides_the_mask(device, form):
    x = torch.randn(form.shapes[0], device=device)
    torch.manual_seed(7)
    y = form(OURS, x)
    assert torch.equal(form(OURS, x, generator=generator_of(device)), y)
    assert not torch.equal(form(OURS, x), y)


class GeneratorOfAGpu(torch.Generator):
    device = torch.device("cuda", 0)


@every_form
def test_unsuitable_generators(device, form, launches):
    x = torch.randn(form.shapes[0])
    before = x.clone()
    message = (
        r"^expected a generator of the input's device, cpu, got one of cuda:0: make it with "
        r"torch.Generator\('cpu'\)$"
    )
    with pytest.raises(RuntimeError, match=message):
        form(OURS, x, generator=GeneratorOfAGpu())
    for wrong in (7, torch.manual_seed, "cpu"):
        with pytest.raises(TypeError, match=r"^expected generator to be a torch.Generator or None, got "):
            form(OURS, x, generator=wrong)
    with pytest.raises(TypeError, match=r"^expected a torch.Tensor to draw a mask for, got list"):
        form(OURS, [1.0], generator=torch.Generator())
    assert torch.equal(x, before)
    assert launches == []


# Where the call goes to torch's operator.


@pytest.fixture
def without_kernels(monkeypatch, launches):
    monkeypatch.setattr(cpu, "KERNELS", None)
    yield
    assert launches == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("form", "inplace"), [
    *(pytest.param(form, False, id=name) for name, form in FORMS.items()),
    *(pytest.param(form, True, id=f"{name} in place") for name, form in INPLACE.items()),
])  # fmt: skip
def test_a_generator_in_torchs_operator(without_kernels, form, inplace, dtype):
    """Bit for bit what torch computes from the default generator in the same state, gradients too."""
    options = dict(inplace=True) if inplace else {}
    results, dy = [], torch.randn(form.shapes[0], dtype=dtype)
    for library, extra in ((formulas, {}), (OURS, dict(generator=torch.Generator().manual_seed(3)))):
        torch.manual_seed(3)
        leaf = (
            torch.linspace(-2, 2, math.prod(form.shapes[0]), dtype=dtype)
            .view(form.shapes[0])
            .requires_grad_()
        )
        x = leaf * 1
        y = form(library, x, 0.3, **options, **extra)
        assert (y is x) == inplace
        results.append([y.detach(), *torch.autograd.grad(y, leaf, dy), rng_state(leaf.device)])
        if extra:
            assert torch.equal(rng_state(leaf.device), torch.Generator().manual_seed(3).get_state())
    (theirs, their_dx, _), (ours, our_dx, _) = results
    assert torch.equal(ours, theirs)
    assert torch.equal(our_dx, their_dx)
    assert 0 < (our_dx == 0).sum() < our_dx.numel()


@every_form
def test_a_generator_in_torchs_operator_advances(without_kernels, form):
    x, generator = torch.randn(form.shapes[0]), torch.Generator().manual_seed(3)
    first, second = (form(OURS, x, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    generator.manual_seed(3)
    assert torch.equal(form(OURS, x, generator=generator), first)


@pytest.mark.parametrize("p", [0.0, 1.0, 0, 1])
@every_form
def test_torchs_operator_draws_nothing_for_certain(without_kernels, form, p):
    x, generator = torch.randn(form.shapes[0]), torch.Generator().manual_seed(3)
    y = form(OURS, x, p, generator=generator)
    assert torch.equal(y, form(formulas, x, p))
    if form.name != "drop_path":
        assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())


@every_form
def test_empty_and_meta_tensors_with_a_generator(device, form, launches):
    for x in (
        torch.ones((0, *form.shapes[0][1:]), device=device, requires_grad=True),
        torch.ones(form.shapes[0], device="meta", requires_grad=True),
    ):
        y = form(OURS, x, generator=generator_of(device))
        assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert dx.shape == x.shape
    assert launches == []


# What torch says of input that it was not made for.


def said(call, *arguments, **options):
    """(the result's type and shape or the exception, the warnings)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            y = call(*arguments, **options)
            outcome = (type(y), y.shape, y.dtype)
        except Exception as raised:
            outcome = (type(raised), str(raised))
    return outcome, [(w.category, str(w.message)) for w in caught]


FUNCTIONS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")


@pytest.mark.parametrize("given", [False, True], ids=["default generator", "generator"])
@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "torch"])
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "inplace"])
@pytest.mark.parametrize("dims", range(7))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_number_of_dimensions(device, monkeypatch, name, dims, inplace, kernel, given):
    """Results, errors and warnings are torch's, its words included."""
    if not kernel:
        device = torch.device("cpu")
        monkeypatch.setattr(cpu, "KERNELS", None)
    for p, training in itertools.product((0.5, 1.0, 0.0, 1.5), (True, False)):
        options = dict(p=p, training=training, inplace=inplace)
        x, other = torch.ones(2, *(2, 3, 2, 2, 2, 2)[:dims], device=device).unbind()
        theirs = said(getattr(F, name), other.clone(), **options)
        x = x.clone()
        ours = said(
            getattr(normreg.functional, name), x, **options,
            **(dict(generator=torch.Generator(device)) if given else {}),
        )  # fmt: skip
        assert ours == theirs, options
        if ours[0][0] is torch.Tensor:
            assert x.shape == ours[0][1]


def test_dropout2d_of_three_dimensions_takes_them_for_samples_channels_and_positions(device):
    """torch's historical reading, of which it warns; dropout1d has the same mask."""
    x = torch.randn(4, 5, 6, device=device)
    with pytest.warns(UserWarning, match="assuming that channel-wise 1D dropout behavior is desired"):
        y = normreg.functional.dropout2d(x, 0.5, generator=generator_of(device))
    assert torch.equal(y, normreg.functional.dropout1d(x, 0.5, generator=generator_of(device)))


def test_an_odd_number_of_dimensions_in_dropout3d(device):
    """torch takes all but five dimensions for one sample's."""
    x = torch.randn(40, 5, 6, device=device)
    with pytest.warns(UserWarning, match="dropout3d: Received a 3-D input"):
        y = normreg.functional.dropout3d(x, generator=generator_of(device))
    one = normreg.functional.dropout1d(x.flatten(1), generator=generator_of(device))
    assert torch.equal(y.flatten(1), one)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_drop_path_outside_its_range(device, launches, p):
    x = torch.ones(3, 4, device=device)
    with pytest.raises(RuntimeError) as theirs:
        formulas.drop_path(x, p, True)
    with pytest.raises(RuntimeError) as ours:
        normreg.functional.drop_path(x, p, True)
    assert str(ours.value) == str(theirs.value)
    assert launches == []


# Modules.


def test_drop_path_is_timms():
    module = normreg.DropPath(0.1234)
    assert repr(module) == "DropPath(drop_prob=0.123)"
    assert (module.drop_prob, module.scale_by_keep) == (0.1234, True)
    assert repr(normreg.DropPath()) == "DropPath(drop_prob=0.000)"
    assert not normreg.DropPath(0.5, scale_by_keep=False).scale_by_keep
    assert list(module.state_dict()) == list(module.parameters()) == []


def test_drop_path_follows_training_and_its_attributes(device):
    x = torch.ones(200, 3, device=device)
    module = normreg.DropPath(0.5)
    assert set(module(x).unique().tolist()) == {0.0, 2.0}
    module.scale_by_keep = False
    assert set(module(x).unique().tolist()) == {0.0, 1.0}
    module.drop_prob = 0.0
    assert module(x) is x
    module.drop_prob = 0.5
    assert module.eval()(x) is x
    assert normreg.functional.drop_path(x) is x
    assert normreg.functional.drop_path(x, 0.5) is x


@pytest.mark.parametrize("name", ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"])
def test_modules_in_place(device, name):
    x = torch.ones((4, 5, 2, 2, 2)[: {"1": 3, "2": 4}.get(name[-2], 5)], device=device)
    for library in (torch.nn, normreg):
        given = x.clone()
        assert getattr(library, name)(inplace=True)(given) is given
        assert set(given.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("name", ["AlphaDropout", "FeatureAlphaDropout"])
def test_alpha_modules_leave_their_input_as_torchs_do(device, name):
    x = torch.ones(20, 5, device=device)
    for library in (torch.nn, normreg):
        module = getattr(library, name)(inplace=True)
        y = module(x)
        assert y is not x
        assert (x == 1).all()
        assert (y != 1).any()
        assert repr(module) == f"{name}(p=0.5, inplace=True)"
