"""Norms with a scale and shift of each sample or row: layouts, dtypes, launches and modules."""

import pytest
import torch
import torch.nn.functional as F
from branches import made
from modulated import KINDS, both, every_norm, tensors
from support.reference import assert_accurate, assert_agrees, copies, error, gradient_layouts, run, unit

import normreg
from bench.operations import OURS, TORCH
from normreg import functional
from normreg.kernels import ada_norm as kernels
from normreg.kernels.tiling import hardware


@pytest.mark.parametrize("cols", [24, 25, 1160])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pieces_of_a_projection_are_read_where_they_are(device, cols, dtype, monkeypatch):
    """Also of rows, and those that begin at no multiple of 16 bytes."""
    x, residual = made(device, dtype, 3, 4, cols), made(device, dtype, 3, 4, cols)
    for leading in ((3,), (3, 4)):
        projection, weight = made(device, dtype, *leading, 6 * cols), made(device, dtype, cols)

        def of(library, projection, weight, x=x, residual=residual):
            shift, scale, gate, *_ = projection.chunk(6, -1)
            return library.ada_layer_norm(x, scale, shift, weight, residual=residual, gate=gate)

        assert_agrees(lambda *t: of(OURS, *t), lambda *t: of(TORCH, *t), [projection, weight])
        _, rows, layout = kernels.laid_out(x, *projection.chunk(6, -1)[:3])
        assert [r.data_ptr() for r in rows] == [p.data_ptr() for p in projection.chunk(6, -1)[:3]]
        assert layout.strides == (None, *(6 * cols,) * 3)


@pytest.mark.some(4)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("cols", [24, 25, 5120])
@pytest.mark.parametrize("seam", [False, True], ids=["alone", "behind a gated sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_a_slice_are_read_where_they_are(device, monkeypatch, norm, cols, seam, dtype):
    """x is a slice of a projection, whose rows are further apart than they are long, in both directions."""
    projection = made(device, dtype, 2, 7, 3 * cols + (4 if cols == 24 else 8))
    scale, gate, residual = (made(device, dtype, *s, cols) for s in ((2,), (2,), (2, 7)))
    given = dict(residual=residual, gate=gate) if seam else {}

    def of(library, projection, scale, gate, residual):
        given = dict(residual=residual, gate=gate) if seam else {}
        return getattr(library, f"ada_{norm}")(projection[..., cols : 2 * cols], scale, **given)

    inputs = [projection, scale, gate, residual][: 4 if seam else 2]
    whole = projection.detach()[..., cols : 2 * cols].contiguous()
    expected = getattr(functional, f"ada_{norm}")(whole, scale, **given)
    monkeypatch.setattr(torch.Tensor, "contiguous", refuse_slices(torch.Tensor.contiguous))
    y = of(OURS, *inputs, *[None] * (4 - len(inputs)))
    torch.autograd.grad(y, inputs, torch.ones_like(y))
    monkeypatch.undo()
    assert torch.equal(y, expected)
    none = [None] * (4 - len(inputs))
    assert_agrees(lambda *t: of(OURS, *t, *none), lambda *t: of(TORCH, *t, *none), inputs)


def refuse_slices(contiguous):
    """Tensor.contiguous, which copies nothing."""

    def of(tensor, *arguments, **options):
        assert tensor.is_contiguous()
        return contiguous(tensor, *arguments, **options)

    return of


def test_modulations_of_any_layout(device):
    """Expanded, transposed, and with vectors that are no multiple of a vector apart."""
    x, scale, shift, gate = (made(device, torch.float32, *s) for s in ((3, 4, 24), (1, 24), (24, 3), (3, 29)))

    def of(library):
        return lambda x, scale, shift, gate: library.ada_layer_norm(
            x, scale.expand(3, 24), shift.t(), residual=x * 2, gate=gate[:, 3:27]
        )

    assert_agrees(of(OURS), of(TORCH), [x, scale, shift, gate])


def test_gradient_layouts(device):
    inputs = tensors("layer_norm", KINDS["samples"], device, torch.float32, 2, 6, 8)
    ours, theirs = both("layer_norm", prenorm=False)
    for _, dy in gradient_layouts(inputs[0].detach()):
        assert_agrees(ours, theirs, inputs, dy)
    strided = [t.detach().mT.contiguous().mT.requires_grad_() for t in inputs[:2]]
    for our, their in zip(run(ours, [*strided, *inputs[2:]], dy), run(ours, inputs, dy), strict=True):
        assert torch.equal(our, their)


@pytest.mark.some(3)
@pytest.mark.parametrize("kinds", [KINDS["samples"], KINDS["rows"]], ids=["samples", "rows"])
@pytest.mark.parametrize(
    ("dtype", "of_modulation"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float32),
    ],
    ids=str,
)
def test_modulations_of_another_dtype(device, kinds, dtype, of_modulation):
    """Gradients have theirs, and 1 + scale is not rounded to x's."""
    x, _, *modulations = tensors("layer_norm", kinds, device, dtype, 2, 5, 24, affine=False, sums=False)
    inputs = [x, *(t.detach().to(of_modulation).requires_grad_() for t in modulations[:2])]
    dy = torch.randn(2, 5, 24, device=device, dtype=dtype)
    results = run(OURS.ada_layer_norm, inputs, dy)
    exact = run(TORCH.ada_layer_norm, copies(inputs, torch.float64), dy.double())
    for result, truth, expected in zip(results, exact, [dtype, *(t.dtype for t in inputs)], strict=True):
        assert result.dtype == expected
        assert error(result, truth) <= 4 * unit(truth, expected)


def test_a_residual_and_gate_in_float32(device):
    """The sum has the dtype of x and residual, and is rounded once."""
    x, own, scale, shift, gate = tensors(
        "rms_norm", KINDS["samples"], device, torch.bfloat16, 2, 5, 24, affine=False
    )
    gate = (gate.detach().float() + 1e-4).requires_grad_()
    for residual in (own, own.detach().float().requires_grad_()):
        y, z = functional.ada_rms_norm(x, scale, shift, residual=residual, gate=gate, prenorm=True)
        assert (y.dtype, z.dtype) == (torch.bfloat16, residual.dtype)
        exact = residual.double() + gate.double()[:, None] * x.double()
        assert_accurate(z, 0.0, exact)
        exact = TORCH.ada_rms_norm(z.double(), scale.double(), shift.double())
        assert_accurate(y, 0.0, exact)
        gradients = torch.autograd.grad((y, z), (x, residual, gate), (y, z))
        assert [g.dtype for g in gradients] == [x.dtype, residual.dtype, torch.float32]


@every_norm
def test_what_is_normalised_is_the_sum_that_is_stored(device, norm):
    inputs = tensors(norm, KINDS["samples"], device, torch.bfloat16, 2, 5, 24, affine=False)
    x, residual, scale, shift, gate = inputs
    given = residual, gate, 1e-6, torch.bfloat16, torch.float32, norm == "layer_norm", True, True
    y, z, _ = torch.ops.normreg.ada_norm(x, scale, shift, None, None, *given)
    exact = getattr(TORCH, f"ada_{norm}")(z.double(), scale.double(), shift.double())
    assert_accurate(y, 0.0, exact, units={torch.float32: 4})


@pytest.mark.parametrize("value", [0.0, 3.0, 1e6, 3e38])
def test_constant_rows_give_the_shift(device, value):
    x, (scale, shift) = torch.full((2, 3, 100), value, device=device), torch.randn(2, 2, 100, device=device)
    assert torch.equal(functional.ada_layer_norm(x, scale, shift), shift[:, None].expand(2, 3, 100))


def test_a_large_mean_costs_nothing(device):
    x = torch.randn(2, 3, 200, device=device) + 1e6
    scale = torch.randn(2, 200, device=device)
    exact = TORCH.ada_layer_norm(x.double(), scale.double())
    assert_accurate(functional.ada_layer_norm(x, scale), 0.0, exact, units={torch.float32: 4})


@pytest.mark.parametrize("cols", [64, hardware.TILE_WORDS_BACKWARD + 8])
def test_a_scale_near_minus_one_keeps_its_digits(device, cols):
    """1 + scale in bfloat16 would be 0 or a unit of 1, also where a wide row is composed."""
    x = torch.randn(2, 3, cols, device=device, dtype=torch.bfloat16)
    scale = -1 + torch.rand(2, cols, device=device) / 1024
    exact = TORCH.ada_layer_norm(x.double(), scale.double())
    assert_accurate(functional.ada_layer_norm(x, scale), 0.0, exact)


def test_rows_too_wide_for_a_tile_are_composed(device, launches):
    cols = hardware.TILE_WORDS_BACKWARD + 8
    inputs = tensors("layer_norm", KINDS["samples"], device, torch.float32, 1, 2, cols, affine=False)
    assert not kernels.is_held(cols, torch.float32)
    assert_agrees(*both("layer_norm"), inputs)
    assert not any(name.startswith("ada_norm") for name in launches)
    assert any(name.startswith("layer_norm") for name in launches)


def test_launches(device, launches):
    """One forward, and two of the backward, which dresidual shares with dx where there is no gate."""
    x, residual, scale, *_ = tensors("layer_norm", KINDS["samples"], device, torch.float32, 2, 5, 24)
    y = functional.ada_layer_norm(x, scale.detach(), residual=residual)
    dx, dresidual = torch.autograd.grad(y.sum(), (x, residual))
    assert dx.data_ptr() == dresidual.data_ptr()
    assert launches == ["ada_norm_forward_kernel", "ada_norm_backward_kernel"]
    torch.autograd.grad(functional.ada_layer_norm(x, scale).sum(), (x, scale))
    assert launches[3:] == ["ada_norm_backward_kernel", "ada_norm_backward_sums_kernel"]


def test_the_gradient_of_a_rows_shift_is_the_incoming_one(device):
    x, _, scale, shift, _ = tensors(
        "layer_norm", KINDS["rows"], device, torch.float32, 2, 5, 24, affine=False
    )
    dy = torch.randn(2, 5, 24, device=device)
    (dshift,) = torch.autograd.grad(functional.ada_layer_norm(x, scale, shift), shift, dy)
    assert torch.equal(dshift, dy)


def test_a_row_does_not_depend_on_the_others(device):
    inputs = tensors("layer_norm", KINDS["samples"], device, torch.float32, 3, 7, 40, sums=False)
    x, _, scale, shift, _, *own = inputs
    whole = functional.ada_layer_norm(x, scale, shift, *own)
    assert torch.equal(functional.ada_layer_norm(x[1:2, :3], scale[1:2], shift[1:2], *own), whole[1:2, :3])


def test_two_backward_passes_are_equal(device):
    inputs = tensors("layer_norm", KINDS["samples"], device, torch.float32, 2, 37, 40)
    y = both("layer_norm")[0](*inputs)
    dy = torch.randn_like(y)
    first, second = (torch.autograd.grad(y, inputs, dy, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_a_module_is_its_function(device):
    for norm, layer in (
        ("layer_norm", normreg.AdaLayerNorm(24, 1e-3, True, prenorm=True, device=device)),
        ("rms_norm", normreg.AdaRMSNorm(24, 1e-3, True, prenorm=True, device=device)),
    ):
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
        x, residual, scale, shift, gate = tensors(
            norm, KINDS["samples"], device, torch.float32, 2, 5, 24, affine=False
        )
        expected = getattr(functional, f"ada_{norm}")(
            x, scale, shift, *layer.parameters(), eps=1e-3, residual=residual, gate=gate, prenorm=True
        )
        assert all(map(torch.equal, layer(x, scale, shift, residual, gate), expected))
        theirs = F.layer_norm if norm == "layer_norm" else F.rms_norm
        y = theirs(expected[1], (24,), *layer.parameters(), 1e-3) * (1 + scale[:, None]) + shift[:, None]
        torch.testing.assert_close(expected[0], y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cols", [2048, 2049, 4096])
def test_the_widest_rows_of_float64(device, launches, cols):
    """2048 elements are held in the backward; wider rows are composed, though the forward could hold them."""
    inputs = [torch.randn(3, cols, device=device, dtype=torch.float64).requires_grad_()]
    inputs += [torch.randn(cols, device=device, dtype=torch.float64).requires_grad_() for _ in range(2)]
    assert_agrees(OURS.ada_layer_norm, TORCH.ada_layer_norm, inputs)
    assert ("ada_norm_forward_kernel" in launches) == (cols == 2048)


def test_a_vector_beside_many_has_a_gradient_rounded_once(device):
    """A scale for all beside a shift of each sample: its sums are not rounded sample by sample."""
    x, dy = torch.randn(2, 64, 4, 64, device=device).bfloat16()
    scale, shift = torch.randn(64, device=device).bfloat16(), torch.randn(64, 64, device=device).bfloat16()
    y = normreg.functional.ada_layer_norm(x, scale.requires_grad_(), shift)
    (gradient,) = torch.autograd.grad(y, scale, dy)
    exact = (torch.nn.functional.layer_norm(x.double(), (64,), eps=1e-6) * dy.double()).sum((0, 1))
    torch.testing.assert_close(gradient.double(), exact, rtol=0.51 * 2**-7, atol=1e-4)
