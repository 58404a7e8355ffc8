"""torch's dropouts and `drop_path`: mask, scale, gradient and errors, whatever the call."""

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_same_exception
from drawn import dtypes, oddities, recipes, shapes, st
from hypothesis import given
from support.reference import outcome

import normreg
from bench.operations.dropping import OF_SELU
from normreg import functional

# torch warns of other numbers of dimensions than usual
pytestmark = pytest.mark.filterwarnings("ignore:dropout:UserWarning")
PROBABILITIES = 0.25, 0.5, 0.75, 0.0, 1.0  # which 16 bits hold exactly
DROPOUTS = {
    name: getattr(functional, name)
    for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
}


@st.composite
def calls(draw):
    """(recipes of x and dy, options) of a dropout."""
    odd = draw(oddities("shape", "p", "training", "inplace"))
    shape, dtype = draw(shapes(odd=odd)), draw(dtypes)
    x, dy = draw(recipes(shape, dtype)), draw(recipes(shape, dtype))
    options = dict(
        p=draw(
            st.sampled_from(
                [-0.1, 1.5, float("nan"), float("inf"), "0.5", None] if "p" in odd else PROBABILITIES
            )
        ),
        training=draw(st.sampled_from([0, 1, None, False] if "training" in odd else [True])),
        inplace="inplace" in odd,
    )
    return x, dy, options


def scaled(x, keep, p, alpha):
    """x after dropout by this mask, in float64."""
    x = x.double()
    if p == 1:
        return torch.zeros_like(x)
    if not alpha:
        return torch.where(keep, x / (1 - p), 0)
    a = ((1 - p) * (1 + p * OF_SELU**2)) ** -0.5
    return a * torch.where(keep, x, OF_SELU) - a * p * OF_SELU


def seeded(device):
    return torch.Generator(device).manual_seed(4)


def assert_near(ours, exact, what):
    expected = exact.to(ours.dtype)
    torch.testing.assert_close(ours, expected, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("name", DROPOUTS)
@given(call=calls())
def test_dropouts(device, name, call):
    x_recipe, dy_recipe, options = call
    ours, theirs = DROPOUTS[name], getattr(F, name)
    x, twin = x_recipe.make(device), x_recipe.make(device)
    theirs_y = outcome(theirs, twin, **options)
    if isinstance(theirs_y, Exception):
        ours_y = outcome(ours, x, **options)
        assert isinstance(ours_y, Exception), f"torch raised {theirs_y!r}, normreg returns"
        assert_same_exception(ours_y, theirs_y)
        assert torch.equal(x.flatten(), twin.flatten())  # torch has added a dimension to it
        return
    p, training = options["p"], options["training"]
    keep = normreg.dropout_mask(ours, x, p, training, generator=seeded(device))
    y = ours(x, **options, generator=seeded(device))
    before = x_recipe.make(device).detach()
    exact = scaled(before, keep, p, "alpha" in name) if training and p else before.double()
    assert_near(y.detach(), exact, "y")
    assert (y.dtype, y.requires_grad) == (theirs_y.dtype, theirs_y.requires_grad)
    assert (y is x) == (theirs_y is twin)
    if options["inplace"]:
        assert y is x
        return
    assert torch.equal(x, before)
    # the mask is that of the logical order, and of the default generator as of any other
    lying = ours(before.contiguous(), **options, generator=seeded(device))
    assert torch.equal(lying, y)
    if x.requires_grad and y is not x:
        dy = dy_recipe.make(device)
        (dx,) = torch.autograd.grad(y, x, dy)
        slope = scaled(torch.ones_like(x), keep, p, "alpha" in name)
        slope = (
            slope - scaled(torch.zeros_like(x), keep, p, "alpha" in name)
            if training and p
            else torch.ones_like(x)
        )
        assert_near(dx, dy.detach().double() * slope, "gradient")
