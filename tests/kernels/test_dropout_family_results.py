"""Every form of dropout at p of 0 and 1, on inf, nan and zero, in place, and its derivatives."""

import math

import formulas
import pytest
import torch
from dropout_forms import INPLACE, P, assert_result, every_form, generator_of, layouts, mask_of, rng_state
from operations import OURS
from support.reference import DTYPES
from torch.utils.checkpoint import checkpoint

import normreg
from normreg.kernels import dropout as kernels

every_inplace_form = pytest.mark.parametrize("form", INPLACE.values(), ids=INPLACE)


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
