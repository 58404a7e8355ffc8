"""First and second derivatives in fp64, against finite differences and against torch."""

import formulas
import pytest
import torch
from operations import FUNCTIONS, OPERATIONS, OURS, every_function
from support.reference import ROUNDED, assert_derivatives

import normreg

# of which torch's function computes the same, because nothing is drawn
SAME = {name: row for name, row in OPERATIONS.items() if not row.draws}
# of x and parameters, which may be float32 beside an x of 16 bits
NORMS = {name: row for name, row in FUNCTIONS.items() if "norm" in row.name and not row.draws}


def doubles(device, *shapes):
    return [torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in shapes]


@pytest.mark.some(20)
@every_function
def test_gradcheck(device, row, thorough):
    assert_derivatives(row.seeded, row.inputs(device, torch.float64), thorough)


@pytest.mark.some(30)
@every_function
def test_gradgradcheck(device, row, thorough):
    assert_derivatives(row.seeded, row.inputs(device, torch.float64), thorough, order=2)


@every_function
def test_both_backwards_are_one_function(device, row):
    """The kernels' gradients, and those of the formula that is taken where they are differentiated again."""
    inputs = row.inputs(device, torch.float64)
    y = row.seeded(*inputs)
    dy = torch.randn_like(y)
    kernel = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    formula = torch.autograd.grad(y, inputs, dy, create_graph=True)
    torch.testing.assert_close(kernel, formula, rtol=1e-12, atol=1e-12)


@pytest.mark.some(20)
@every_function
def test_batched_gradients(device, row):
    """`is_grads_batched`, which `torch.autograd.functional.jacobian(vectorize=True)` uses."""
    inputs = row.inputs(device, torch.float64)
    y = row.seeded(*inputs)
    dys = torch.randn(3, *y.shape, dtype=y.dtype, device=device)
    batched = torch.autograd.grad(y, inputs, dys, retain_graph=True, is_grads_batched=True)
    single = [torch.autograd.grad(y, inputs, dy, retain_graph=True) for dy in dys]
    torch.testing.assert_close(batched, tuple(map(torch.stack, zip(*single))), rtol=1e-12, atol=1e-12)


def test_gradcheck_channels_last(device, thorough):
    row = FUNCTIONS["batch_norm of images"]
    x, *parameters = row.inputs(device, torch.float64)
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert_derivatives(row.seeded, [x, *parameters], thorough)


@pytest.mark.some(1)
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_gradcheck_of_rows_wider_than_a_tile(device, name):
    """The whole of dx is checked in one direction, not element by element."""
    row = OPERATIONS[name]
    shapes = [(1, 16386)] + [(16386,)] * (len(row.shapes) - 1)
    assert_derivatives(row.seeded, doubles(device, *shapes), thorough=False)


def test_gradcheck_of_groups_that_are_split(device):
    """The whole of dx is checked in one direction, not element by element."""
    inputs = doubles(device, (1, 4, 90, 91), (4,), (4,))
    assert_derivatives(OPERATIONS["group_norm"].seeded, inputs, thorough=False)


@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
def test_second_order_where_the_incoming_gradient_needs_none(device, row):
    """(f(x) + x^3).sum(): the case in which a backward marked once-differentiable drops a term in silence."""
    x, *parameters = row.inputs(device, torch.float64)
    second = []
    for library in (OURS, formulas):
        y = row(library, x, *parameters)
        (g,) = torch.autograd.grad((y * x.detach() + x**3).sum(), x, create_graph=True)
        second.append(torch.autograd.grad((g * x.detach()).sum(), x)[0])
    torch.testing.assert_close(*second)


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm", "BatchNorm1d", "GroupNorm"])
def test_gradient_penalty_step(device, kind):
    """A WGAN-GP step: the gradient of a gradient's norm, with respect to the parameters."""
    results = []
    for library in (normreg, torch.nn):
        torch.manual_seed(2)
        norm = getattr(library, kind)(*([2] if kind == "GroupNorm" else []), 8)
        critic = torch.nn.Sequential(torch.nn.Linear(4, 8), norm, torch.nn.Tanh(), torch.nn.Linear(8, 1))
        critic.to(device, torch.float64)
        (x,) = doubles(device, (7, 4))
        (g,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        ((g.norm(dim=1) - 1) ** 2).mean().backward()
        results.append([p.grad for p in critic.parameters() if p.grad is not None])
    torch.testing.assert_close(*results)


def beside_float32(row, device, dtype):
    """x and a residual of this dtype, parameters of float32."""
    return [
        (torch.randn(shape, device=device) + 5 * (shape == row.shapes[0]))
        .to(dtype if shape == row.shapes[0] else torch.float32)
        .requires_grad_()
        for shape in row.shapes
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("row", NORMS.values(), ids=NORMS)
def test_both_backwards_compute_16_bits_in_float32(device, row, dtype):
    inputs = beside_float32(row, device, dtype)
    y = row.seeded(*inputs)
    dy = torch.randn_like(y)
    kernel = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    formula = torch.autograd.grad(y, inputs, dy, create_graph=True)
    for ours, expected in zip(kernel, formula, strict=True):
        rtol = 2 * ROUNDED[dtype] if ours.dtype == dtype else 1e-5  # both are rounded once
        torch.testing.assert_close(ours, expected, rtol=rtol, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", [name for name in SAME if name in NORMS])
def test_second_order_gradients_keep_their_dtypes(device, name, dtype):
    inputs = beside_float32(NORMS[name], device, dtype)
    y = NORMS[name].seeded(*inputs)
    grads = torch.autograd.grad(y, inputs, torch.randn_like(y), create_graph=True)
    assert [g.dtype for g in grads] == [t.dtype for t in inputs]
    (second,) = torch.autograd.grad(grads[0].float().square().sum(), inputs[0])
    assert second.dtype == dtype
    assert second.isfinite().all()
