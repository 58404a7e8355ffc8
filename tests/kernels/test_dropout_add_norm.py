"""Dropout, sum and norm: results and gradients against torch's operators under the same mask."""

import pytest
import torch
import torch.nn.functional as F
from branches import NORMS, every_norm, factors, generator, made, parameters
from support.reference import (
    DTYPES,
    IN_TILES,
    RAGGED,
    WIDE,
    assert_accurate,
    assert_agrees,
    gradient_layouts,
    run,
)

from normreg import functional
from normreg.kernels.dtypes import compute_dtype

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def both(norm, x, p=0.3, prenorm=True, row_scale=None, with_layer_scale=False, **options):
    """The fused function, and torch's operators under its mask, of (x, residual, [layer_scale], weight, ...).

    With prenorm of y and z at once, each of which gets a gradient of its own.
    """
    fused, torchs = NORMS[norm]
    shape, dtype = x.shape[-1:], x.dtype
    keep, scale = factors(fused, x, None, shape, scaled_for=p, p=p) if p else (None, None)

    def split(rest):
        return (rest[0], rest[1:]) if with_layer_scale else (None, rest)

    def ours(x, residual, *rest):
        layer_scale, rest = split(rest)
        given = dict(p=p, prenorm=prenorm, row_scale=row_scale, layer_scale=layer_scale, **options)
        result = fused(x, residual, shape, *rest, generator=generator(x.device), **given)
        return torch.cat(result) if prenorm else result

    def theirs(x, residual, *rest):
        layer_scale, rest = split(rest)
        branch = torch.where(keep, x * scale, 0) if p else x
        if row_scale is not None:
            branch = branch * row_scale.to(x.dtype).view(*row_scale.shape, *[1] * (x.dim() - row_scale.dim()))
        branch = branch if layer_scale is None else branch * layer_scale
        z = branch if residual is None else residual + branch
        given = dict(weight=rest[0]) if rest else {}
        given |= dict(bias=rest[1]) if len(rest) > 1 else {}
        # that of the dtype computed in, also where the reference is in float64
        given |= dict(eps=torch.finfo(compute_dtype(dtype)).eps) if norm == "rms_norm" else {}
        y = torchs(z, shape, **given)
        return torch.cat((y, z)) if prenorm else y

    return ours, theirs


@every_dtype
@every_norm
@pytest.mark.parametrize("cols", [5, 1000, 1001, IN_TILES])
def test_agrees_with_torch(device, norm, dtype, cols):
    x, residual = made(device, dtype, 5, cols), made(device, dtype, 5, cols)
    assert_agrees(*both(norm, x), [x, residual, *parameters(norm, cols, device, dtype)])


@pytest.mark.parametrize(
    ("norm", "dtype"), [("layer_norm", torch.float32), ("rms_norm", torch.bfloat16)], ids=str
)
def test_rows_too_wide_to_be_held(device, norm, dtype):
    cols = 16402
    x, residual = made(device, dtype, 1, cols), made(device, dtype, 1, cols)
    assert_agrees(*both(norm, x), [x, residual, *parameters(norm, cols, device, dtype)])


@pytest.mark.parametrize("cols", RAGGED)
def test_rows_beside_a_tile(device, cols):
    x, residual = made(device, torch.float32, 9, cols), made(device, torch.float32, 9, cols)
    inputs = [x, residual, *parameters("layer_norm", cols, device, torch.float32)]
    assert_agrees(*both("layer_norm", x, prenorm=False), inputs)


@pytest.mark.parametrize(
    ("norm", "leading", "cols"),
    [
        ("layer_norm", (3,), 1001),
        ("rms_norm", (3, 2), 1000),
        ("layer_norm", (3,), IN_TILES),
        ("layer_norm", (3,), WIDE),
    ],
)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_scales(device, norm, p, leading, cols):
    """A row scale of samples or of rows and, where something is dropped, a layer scale."""
    x, residual = made(device, torch.float32, 3, 2, cols), made(device, torch.float32, 3, 2, cols)
    row_scale = torch.rand(leading, device=device) + 0.5
    functions = both(norm, x, p, row_scale=row_scale, with_layer_scale=p > 0)
    scales = [made(device, torch.float32, cols)] if p else []
    assert_agrees(*functions, [x, residual, *scales, *parameters(norm, cols, device, torch.float32)])


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_and_everything_dropped(device, dtype, p):
    x, residual = made(device, dtype, 4, 40), made(device, dtype, 4, 40)
    inputs = [x, residual, *parameters("layer_norm", 40, device, dtype)]
    assert_agrees(*both("layer_norm", x, p), inputs)


@every_norm
@pytest.mark.parametrize("cols", [40, IN_TILES, WIDE])
def test_without_residual_or_parameters(device, norm, cols):
    x = made(device, torch.float32, 4, cols)
    ours, theirs = both(norm, x)
    assert_agrees(lambda x: ours(x, None), lambda x: theirs(x, None), [x])
    y, z = NORMS[norm][0](x, None, (cols,), p=0.0, prenorm=True)
    assert z is x
    assert torch.equal(y, getattr(functional, norm)(x, (cols,)))


@every_norm
def test_residual_of_layer_norm_itself(device, norm, launches):
    x, residual = made(device, torch.float32, 4, 40), made(device, torch.float32, 4, 40)
    weights = parameters(norm, 40, device, torch.float32)
    ours = getattr(functional, norm)

    def add(x, residual, *weights):
        return torch.cat(ours(x, (40,), *weights, residual=residual, prenorm=True))

    _, theirs = both(norm, x, 0.0)
    assert_agrees(add, theirs, [x, residual, *weights])
    launches.clear()
    dx, dresidual = torch.autograd.grad(ours(x, (40,), residual=residual).sum(), (x, residual))
    assert dx.data_ptr() == dresidual.data_ptr()  # one tensor is written
    assert launches == ["dropout_add_norm_forward_kernel", "dropout_add_norm_backward_kernel"]


@pytest.mark.parametrize("cols", [40, WIDE])
@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)], ids=["y", "z", "y and z"])
def test_gradients_of_either_result(device, cols, used):
    x, residual = made(device, torch.float32, 4, cols), made(device, torch.float32, 4, cols)
    inputs = [x, residual, *parameters("layer_norm", cols, device, torch.float32)]
    ours, theirs = both("layer_norm", x)
    dy = torch.randn(8, cols, device=device)
    results = []
    for function in (ours, theirs):
        found = function(*inputs).split(4)
        wanted = inputs if 0 in used else inputs[:2]
        gradients = torch.autograd.grad([found[i] for i in used], wanted, [dy.split(4)[i] for i in used])
        results.append(gradients)
    for our, their in zip(*results, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("wanted", "cols"), [(1, 40), (2, 40), (4, 40), (8, 40), (16, 40), (1, WIDE), (20, WIDE)], ids=str
)
def test_gradient_of_any_subset(device, wanted, cols):
    inputs = [made(device, torch.float32, 4, cols), made(device, torch.float32, 4, cols)]
    inputs += [made(device, torch.float32, cols) for _ in range(3)]
    for i, t in enumerate(inputs):
        t.requires_grad_(bool(wanted >> i & 1))
    assert_agrees(*both("layer_norm", inputs[0], with_layer_scale=True), inputs)


def test_gradient_layouts(device):
    x, residual = made(device, torch.float32, 6, 8), made(device, torch.float32, 6, 8)
    inputs = [x, residual, *parameters("layer_norm", 8, device, torch.float32)]
    ours, theirs = both("layer_norm", x, prenorm=False)
    for _, dy in gradient_layouts(x.detach()):
        assert_agrees(ours, theirs, inputs, dy)
    strided = [t.detach().t().contiguous().t().requires_grad_() for t in (x, residual)]
    for our, their in zip(run(ours, [*strided, *inputs[2:]], dy), run(ours, inputs, dy), strict=True):
        assert torch.equal(our, their)


@every_norm
def test_a_residual_in_float32(device, norm):
    x = made(device, torch.bfloat16, 4, 40)
    weights = parameters(norm, 40, device, torch.bfloat16)
    fused, torchs = NORMS[norm]
    for residual, options in (
        (made(device, torch.bfloat16, 4, 40), dict(residual_in_fp32=True)),
        (made(device, torch.float32, 4, 40), {}),
    ):
        y, z = fused(x, residual, (40,), *weights, training=False, prenorm=True, **options)
        assert (y.dtype, z.dtype) == (torch.bfloat16, torch.float32)
        exact_z = x.detach().double() + residual.detach().double()
        assert_accurate(z, x.float() + residual.float(), exact_z)
        eps = () if norm == "layer_norm" else (torch.finfo(torch.float32).eps,)
        exact = torchs(exact_z, (40,), *[w.detach().double() for w in weights], *eps)
        assert_accurate(y, exact.to(y.dtype), exact)
        dx, dresidual, dweight, *_ = torch.autograd.grad((y, z), (x, residual, *weights), (y, z))
        assert (dx.dtype, dresidual.dtype, dweight.dtype) == (x.dtype, residual.dtype, torch.bfloat16)
        assert torch.equal(dx, dresidual.to(dx.dtype))


def test_float32_parameters_beside_16_bits(device):
    x, residual = made(device, torch.bfloat16, 4, 40), made(device, torch.bfloat16, 4, 40)
    inputs = [x, residual, *parameters("layer_norm", 40, device, torch.float32)]
    ours, theirs = both("layer_norm", x, prenorm=False)
    assert_agrees(ours, theirs, inputs)


@pytest.mark.parametrize("cols", [64, IN_TILES, WIDE])
def test_a_large_mean_costs_nothing(device, cols):
    x = (torch.randn(3, cols, device=device) + 1e6).requires_grad_()
    residual = made(device, torch.float32, 3, cols)
    ours, _ = both("layer_norm", x, 0.0, prenorm=False)
    exact_z = (x + residual).detach().double()
    assert_accurate(ours(x, residual), 0.0, F.layer_norm(exact_z, (cols,)))


@pytest.mark.parametrize("cols", [40, IN_TILES, WIDE])
@every_norm
def test_what_is_normalised_is_the_sum_that_is_stored(device, norm, cols):
    """Statistics of the sum before it is rounded would be none of what the backward loads."""
    x, residual = made(device, torch.bfloat16, 3, cols), made(device, torch.bfloat16, 3, cols)
    given = (cols,), 1e-5, torch.bfloat16, torch.float32, norm == "layer_norm", True, True
    y, z, _ = torch.ops.normreg.dropout_add_norm(x, residual, *[None] * 5, 0.0, 0, *given)
    exact = getattr(F, norm)(z.double(), (cols,), eps=1e-5)
    assert_accurate(y, 0.0, exact, units={torch.float32: 4})


def test_a_row_does_not_depend_on_the_others(device):
    x, residual = made(device, torch.float32, 9, 40), made(device, torch.float32, 9, 40)
    ours, _ = both("layer_norm", x, prenorm=False)
    assert torch.equal(ours(x[:4], residual[:4]), ours(x, residual)[:4])


@pytest.mark.parametrize("cols", [40, WIDE])
def test_two_backward_passes_are_equal(device, cols):
    x, residual = made(device, torch.float32, 3, cols), made(device, torch.float32, 3, cols)
    inputs = [
        x,
        residual,
        made(device, torch.float32, cols),
        *parameters("layer_norm", cols, device, torch.float32),
    ]
    y = both("layer_norm", x, with_layer_scale=True)[0](*inputs)
    dy = torch.randn_like(y)
    first, second = (torch.autograd.grad(y, inputs, dy, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))
