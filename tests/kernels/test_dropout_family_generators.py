"""The generator that every form of dropout takes, in the kernels and in torch's operators."""

import math

import formulas
import pytest
import torch
from dropout_forms import FORMS, INPLACE, every_form, generator_of, rng_state
from operations import OURS
from support.reference import DTYPES

from normreg.kernels import cpu


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


@pytest.fixture
def without_kernels(monkeypatch, launches):
    monkeypatch.setattr(cpu, "KERNELS", None)
    yield
    assert launches == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("form", "inplace"),
    [
        *(pytest.param(form, False, id=name) for name, form in FORMS.items()),
        *(pytest.param(form, True, id=f"{name} in place") for name, form in INPLACE.items()),
    ],
)
def test_a_generator_in_torchs_operator(without_kernels, form, inplace, dtype):
    """Results and gradients are, bit for bit, torch's from the default generator in the same state."""
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
