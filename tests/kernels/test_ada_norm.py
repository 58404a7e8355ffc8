"""Norms with a scale and shift of each sample or row: results and gradients against torch's operators."""

import pytest
import torch
from branches import made
from modulated import KINDS, both, every_dtype, every_kind, every_norm, tensors
from support.reference import RAGGED, assert_agrees

from bench.operations import OURS, TORCH
from normreg import functional
from normreg.kernels import tiling
from normreg.kernels.tiling.rows import Rows


@pytest.mark.some(8)
@every_dtype
@every_norm
@every_kind
def test_agrees_with_torch(device, norm, kinds, dtype, guarded_memory):
    """A few rows of a tile belong to one sample, others to the next."""
    inputs = tensors(norm, kinds, device, dtype, 3, 7, 40)
    assert_agrees(*both(norm), [None if t is None else guarded_memory.place(t) for t in inputs])


@pytest.mark.some(8)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cols", [*RAGGED, 1152, 2056, 5120])
@pytest.mark.parametrize("kinds", [KINDS["samples"], KINDS["rows"]], ids=["samples", "rows"])
def test_widths(device, kinds, cols, dtype):
    inputs = tensors("layer_norm", kinds, device, dtype, 2, 5 if cols > 1025 else 19, cols)
    assert_agrees(*both("layer_norm"), inputs)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 131])
@pytest.mark.parametrize("samples", [1, 2, 5])
def test_samples_beside_a_tile(device, samples, tokens, monkeypatch):
    """cols = 64 makes tiles of 16 rows; the programs of a sample share its tiles."""
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 4)
    assert tiling.modulated.ada_norm_forward_tile(Rows(1, 99, 64, False), torch.float32, 8).rows == 16
    assert_agrees(
        *both("layer_norm"),
        tensors("layer_norm", KINDS["samples"], device, torch.float32, samples, tokens, 64),
    )


@every_norm
@every_kind
def test_without_residual_or_parameters(device, norm, kinds):
    inputs = tensors(norm, kinds, device, torch.float32, 2, 5, 24, affine=False, sums=False)
    assert_agrees(*both(norm, prenorm=False), inputs)
    x, _, scale, shift, *_ = inputs
    y, z = getattr(functional, f"ada_{norm}")(x, scale, shift, prenorm=True)
    assert z is x
    assert torch.equal(y, both(norm, prenorm=False)[0](*inputs))


@pytest.mark.parametrize("shape", [(2, 24), (2, 3, 24), (2, 3, 2, 5, 24), (24,), (1, 3, 24)], ids=str)
@pytest.mark.parametrize("ones", [0, 1, 3])
def test_dimensions(device, shape, ones):
    """Vectors of samples with as many dimensions as x, or two, and those for all with any."""
    x = made(device, torch.float32, *shape)
    leading = (*shape[:1], *[1] * (len(shape) - 2)) if ones and len(shape) > 1 else shape[: len(shape) > 1]
    scale, shift = (
        made(device, torch.float32, *leading, 24),
        made(device, torch.float32, *[1] * min(ones, x.dim() - 1), 24),
    )
    assert_agrees(OURS.ada_layer_norm, TORCH.ada_layer_norm, [x, scale, shift])


@every_norm
@pytest.mark.parametrize(
    "shapes",
    [((2, 3, 1), (2, 3, 1), (2, 1, 1)), ((2, 1, 1), (2, 3, 5), (2, 3, 1)), ((2, 3, 5), (2, 3, 1), (2,))],
    ids=["of frames", "gate of frames", "shift of frames"],
)
def test_frames(device, norm, shapes):
    """Each frame of a video has its modulation, [2, 3, 1, 24] of [2, 3, 5, 24]; others are the sample's."""
    x, residual = made(device, torch.float32, 2, 3, 5, 24), made(device, torch.float32, 2, 3, 5, 24)
    assert_agrees(*both(norm), [x, residual, *(made(device, torch.float32, *s, 24) for s in shapes)])


@every_norm
@pytest.mark.parametrize("wanted", [*(1 << i for i in range(7)), 0b1010100, 0b0000110])
@pytest.mark.parametrize("kinds", [KINDS["samples"], KINDS["rows"]], ids=["samples", "rows"])
def test_gradient_of_any_subset(device, norm, kinds, wanted):
    inputs = tensors(norm, kinds, device, torch.float32, 3, 5, 24)
    for i, t in enumerate(inputs):
        t.requires_grad_(bool(wanted >> i & 1))
    if any(t.requires_grad for t in inputs):
        assert_agrees(*both(norm), inputs)


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)], ids=["y", "z", "y and z"])
def test_gradients_of_either_result(device, used):
    inputs = tensors("layer_norm", KINDS["samples"], device, torch.float32, 2, 5, 24)
    x, residual, _, _, gate, *_ = inputs
    dy, results = torch.randn(4, 5, 24, device=device), []
    for function in both("layer_norm"):
        found = function(*inputs).split(2)
        wanted = inputs if 0 in used else (x, residual, gate)
        dys = dy.split(2)
        results.append(torch.autograd.grad([found[i] for i in used], wanted, [dys[i] for i in used]))
    for our, their in zip(*results, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=2e-5)
