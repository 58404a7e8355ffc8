"""Dropout: its scale, its result at p of 0 and 1, in place, and its derivatives."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.reference import DTYPES, ROUNDED, gradient_layouts
from torch.utils.checkpoint import checkpoint

import normreg
from normreg.kernels import launch

dropout = normreg.functional.dropout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("elements", [1, 3, 17, 1000, 1024, 1025, 2048, 2056, 4099])
def test_kept_elements_are_scaled_and_gradients_share_the_mask(device, guarded_memory, elements, dtype):
    x = guarded_memory.place(torch.randn(elements, device=device).to(dtype).requires_grad_())
    dy = guarded_memory.place(torch.randn(elements, device=device).to(dtype))
    before = x.detach().clone(), dy.clone()
    y = dropout(x, 0.25)
    (dx,) = torch.autograd.grad(y, x, dy)
    kept = y != 0
    for result, source in ((y, before[0]), (dx, before[1])):
        expected = torch.where(kept, source.double() / 0.75, 0.0)
        torch.testing.assert_close(result.double(), expected, rtol=ROUNDED[dtype], atol=0)
    assert torch.equal(x, before[0])
    assert torch.equal(dy, before[1])


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: torch.stack([x, x])[1],
        lambda x: torch.cat([x, x], 1)[:, ::2],
    ],
    ids=["transposed", "offset", "strided"],
)
def test_layout_does_not_change_the_mask(device, view):
    x = torch.ones(64, 48, device=device)
    torch.manual_seed(3)
    expected = dropout(x, 0.5) != 0
    torch.manual_seed(3)
    y = dropout(view(x), 0.5)
    assert torch.equal(y != 0, expected)
    assert y.stride() == F.dropout(view(x), 0.5).stride()


def test_gradient_layouts(device):
    x = torch.randn(2, 3, 4, 5, device=device, requires_grad=True)
    for layout, dy in gradient_layouts(x):
        y = dropout(x, 0.5)
        (dx,) = torch.autograd.grad(y, x, dy)
        assert torch.equal(dx, torch.where(y != 0, dy * 2, 0.0)), layout


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_recomputes_the_mask(device, use_reentrant):
    x = torch.randn(1000, device=device, requires_grad=True)
    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(11)
        block = lambda x: dropout(x * 2, 0.5) ** 2  # noqa: E731
        y = checkpoint(block, x, use_reentrant=use_reentrant) if checkpointed else block(x)
        grads.append(torch.autograd.grad(y.sum(), x)[0] if not use_reentrant else None)
        if use_reentrant:
            x.grad = None
            y.sum().backward()
            grads[-1] = x.grad
    assert torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_p_one(device, dtype):
    x = torch.tensor([1.0, math.inf, -math.inf, math.nan], device=device, dtype=dtype, requires_grad=True)
    y = dropout(x, 1.0)
    (dx,) = torch.autograd.grad(y, x, torch.full_like(x, math.inf))
    assert torch.equal(y, torch.zeros_like(x))
    assert torch.equal(dx, torch.zeros_like(x))


def test_p_zero_and_evaluation_return_the_input(device):
    x = torch.randn(5, device=device)
    module = normreg.Dropout(0.5)
    assert dropout(x, 0.0) is x
    assert dropout(x, 0.5, training=False) is x
    assert module.eval()(x) is x
    assert module.train()(x) is not x


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("p", [1e-8, 1e-5, 1e-3, 1 / 3, 1 - 1e-3, 1 - 1e-7, 1 - 1e-12])
def test_the_scale_is_exact_for_the_rounded_p(device, p, dtype, monkeypatch):
    """E[y] = x: the scale times the probability of being kept is 1, and p is close to what was asked for."""
    seen = {}
    original = launch.launch

    def note(call, *tensors, **options):
        *_, keep_threshold, scale, shift, dropped = call.numbers
        seen.update(keep=keep_threshold / 2 ** call.constants["BITS"], scale=scale)
        assert (shift, dropped) == (0, 0)
        original(call, *tensors, **options)

    monkeypatch.setattr(launch, "launch", note)
    y = dropout(torch.ones(64, device=device, dtype=dtype), p)
    assert math.isclose(seen["keep"] * seen["scale"], 1.0, rel_tol=2**-52)
    assert 0 < seen["keep"] < 1
    assert math.isclose(1 - seen["keep"], p, rel_tol=2**-8, abs_tol=2**-32)
    assert math.isclose(seen["keep"], 1 - p, rel_tol=2**-8, abs_tol=2**-32)
    assert not y.isnan().any()


def test_dropped_inf_and_nan_are_zero(device):
    x = torch.tensor([math.inf, -math.inf, math.nan], device=device).repeat(200)
    y = dropout(x, 0.5)
    kept = y != 0
    assert 200 < kept.sum() < 400
    assert torch.equal(y[kept].nan_to_num(7.0), x[kept].nan_to_num(7.0))


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.t()], ids=["contiguous", "transposed"])
def test_inplace(device, view):
    leaf = torch.randn(30, 20, device=device, requires_grad=True)
    x = view(leaf * 1)
    before, version = x.detach().clone(), x._version
    y = dropout(x, 0.5, inplace=True)
    assert y is x
    assert x._version > version
    kept = x != 0
    assert torch.equal(x, torch.where(kept, before * 2, 0.0))
    dy = torch.randn_like(x)
    (dx,) = torch.autograd.grad(x, leaf, dy)
    assert torch.equal(view(dx), torch.where(kept, dy * 2, 0.0))


def test_inplace_without_gradient(device):
    x = torch.ones(100, device=device)
    version = x._version
    assert dropout(x, 0.5, inplace=True) is x
    assert x._version == version + 1
    assert set(x.unique().tolist()) == {0.0, 2.0}


def test_inplace_is_seen_by_autograd(device):
    leaf = torch.randn(10, device=device, requires_grad=True)
    x = leaf.exp()  # saves its result
    dropout(x, 0.5, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


def test_nothing_is_saved(device):
    saved = []
    x = torch.randn(100, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        dropout(x, 0.5)
    assert saved == []


def test_backward_twice_and_double_backward(device):
    x = torch.randn(50, device=device, requires_grad=True)
    y = dropout(x, 0.5)
    kept = y != 0
    first, second = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (g,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    (gg,) = torch.autograd.grad(g.sum(), x)
    assert torch.equal(gg, torch.where(kept, torch.tensor(8.0, device=device), 0.0))
