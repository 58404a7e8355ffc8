"""Dropout, sum and norm: the one mask, what is kept and launched, the modules, and errors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from branches import NORMS, every_norm, generator, made, parameters
from saved import bytes_beside, saved_by
from support.reference import (
    IN_TILES,
    WIDE,
)

import normreg
from bench.lab.bounds import tensors_of
from bench.lab.without_gpu import noted_launches
from normreg import dropout_mask, functional


@pytest.mark.parametrize("cols", [8, 100, 1024, IN_TILES, WIDE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_mask(device, cols, dtype):
    """Forward, backward and `dropout_add` share a mask; so does `dropout` where rows are whole calls."""
    x = torch.ones(2, cols, device=device, dtype=dtype).requires_grad_()
    residual = torch.zeros_like(x, requires_grad=True)
    keep = dropout_mask(
        functional.dropout_add_layer_norm, x, residual, (cols,), p=0.3, generator=generator(device)
    )
    given = dict(p=0.3, generator=generator(device))
    y, z = functional.dropout_add_layer_norm(x, residual, (cols,), prenorm=True, **given)
    assert torch.equal(z != 0, keep)
    (dx,) = torch.autograd.grad((y, z), x, (torch.zeros_like(y), torch.rand_like(z) + 1))
    assert torch.equal(dx != 0, keep)
    if cols % 8 == 0:
        assert torch.equal(keep, functional.dropout(x, 0.3, generator=generator(device)) != 0)
        assert torch.equal(keep, dropout_mask(functional.dropout, x, 0.3, generator=generator(device)))


def test_no_two_rows_have_one_mask(device):
    """The kept share is p's, and decisions next to each other agree as often as independent ones do."""
    rows, cols, p = 100, 1001, 0.3
    x = torch.empty(rows, cols, device=device, dtype=torch.bfloat16).fill_(1)
    keep = dropout_mask(functional.dropout_add_layer_norm, x, None, (cols,), p=p).double()
    count = rows * cols
    assert abs(keep.mean().item() - (1 - p)) < 4 * (p * (1 - p) / count) ** 0.5
    for other in (keep.roll(1, 0), keep.roll(1, 1), keep.roll(8, 1), keep.roll((1, 1), (0, 1))):
        correlation = ((keep - keep.mean()) * (other - other.mean())).mean() / keep.var()
        assert abs(correlation.item()) < 4 / count**0.5


def test_the_mask_follows_the_generator(device):
    x = torch.randn(4, 40, device=device)
    call = lambda: functional.dropout_add_layer_norm(x, x, (40,), p=0.5)  # noqa: E731
    torch.manual_seed(3)
    first, second = call(), call()
    torch.manual_seed(3)
    assert torch.equal(call(), first)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    dropout_mask(functional.dropout_add_layer_norm, x, x, (40,), p=0.5)
    assert torch.equal(call(), first)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputed_with_the_same_mask(device, use_reentrant):
    x, residual = made(device, torch.float32, 4, 40), made(device, torch.float32, 4, 40)
    layer = normreg.DropoutAddLayerNorm(40, p=0.5, device=device)
    results = []
    for recompute in (False, True):
        torch.manual_seed(3)
        if recompute:
            y = torch.utils.checkpoint.checkpoint(layer, x, residual, use_reentrant=use_reentrant)
        else:
            y = layer(x, residual)
        x.grad = residual.grad = None
        y.square().sum().backward()
        results.append((y.detach(), x.grad, residual.grad))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(("cols", "forward", "backward"), [(40, 1, 2), (16392, 1, 3), (WIDE, 2, 3)])
def test_launches_of_a_call(device, launches, cols, forward, backward):
    x, residual = made(device, torch.bfloat16, 2, cols), made(device, torch.bfloat16, 2, cols)
    weights = parameters("layer_norm", cols, device, torch.bfloat16)
    y, z = functional.dropout_add_layer_norm(x, residual, (cols,), *weights, prenorm=True)
    assert len(launches) == forward
    launches.clear()
    torch.autograd.grad((y, z), (x, residual, *weights), (y, z))
    assert len(launches) == backward


class TestBytes:
    @pytest.fixture(autouse=True)
    def guarded_memory(self):
        """Guards nothing: guard bands would be counted."""

    @pytest.mark.parametrize("layer_scale", [None, 0.5])
    def test_what_is_kept(self, device, layer_scale):
        """A call keeps z and statistics, three numbers a row."""
        layer = normreg.DropoutAddLayerNorm(40, p=0.3, layer_scale=layer_scale, device=device)
        x, residual = made(device, torch.float32, 4, 40), made(device, torch.float32, 4, 40)
        _, saved = saved_by(lambda: layer(x, residual))
        assert bytes_beside(saved, x, *layer.parameters()) == 4 * 40 * 4 + 3 * 4 * 4
        assert any(t is x or t.data_ptr() == x.data_ptr() for t in saved) == (layer_scale is not None)

    def test_without_gradients_nothing_is_made_but_y(self, device):
        layer = normreg.DropoutAddLayerNorm(40, p=0.3, device=device)
        x, residual = torch.randn(4, 40, device=device), torch.randn(4, 40, device=device)
        with (
            torch.no_grad(),
            noted_launches() as noted,
        ):
            layer(x, residual)
        (entry,) = noted
        assert {name for name, _ in tensors_of(entry.arguments)} == {
            "inputs.x",
            "inputs.residual",
            "results.y",
            "parameters.weight",
            "parameters.bias",
            "seed_ptr",
        }


@pytest.mark.parametrize("name", ["DropoutAddLayerNorm", "DropoutAddRMSNorm"])
def test_modules(device, name):
    norm = {"DropoutAddLayerNorm": "LayerNorm", "DropoutAddRMSNorm": "RMSNorm"}[name]
    plain = getattr(torch.nn, norm)((3, 8)).to(device)
    layer = getattr(normreg, name)((3, 8), p=0.4, prenorm=True).to(device)
    layer.load_state_dict(plain.state_dict())
    assert isinstance(layer, getattr(torch.nn, norm))
    assert repr(layer) == repr(plain).replace(norm, name)[:-1] + ", p=0.4, prenorm=True)"
    x, residual = torch.randn(2, 5, 3, 8, device=device), torch.randn(2, 5, 3, 8, device=device)
    y, z = copy.deepcopy(layer).eval()(x, residual)
    torch.testing.assert_close(z, x + residual)
    torch.testing.assert_close(y, plain(x + residual))
    row_scale = torch.tensor([0.0, 2.0], device=device)
    _, z = layer.eval()(x, residual, row_scale)
    torch.testing.assert_close(z, torch.stack((residual[0], 2 * x[1] + residual[1])))

    scaled = getattr(normreg, name)(8, layer_scale=1e-4, device=device)
    assert repr(scaled).endswith(", p=0.5, layer_scale=0.0001)")
    assert set(scaled.state_dict()) == {*getattr(torch.nn, norm)(8).state_dict(), "layer_scale"}
    scaled.layer_scale.data.fill_(3)
    scaled.reset_parameters()
    assert torch.equal(scaled.layer_scale, torch.full((8,), 1e-4, device=device))
    assert scaled(torch.randn(2, 8, device=device)).shape == (2, 8)
    with pytest.raises(ValueError, match="between 0 and 1"):
        getattr(normreg, name)(8, p=1.5)
    with pytest.raises(
        TypeError, match=r"expected 1 of its arguments by position, got .*: pass p, prenorm, "
    ):
        getattr(normreg, name)(8, 0.1)  # eps or p?


@every_norm
def test_what_the_kernel_does_not_take(device, norm, launches):
    """The call goes to torch's operators, with the same result."""
    fused, torchs = NORMS[norm]
    x, residual = torch.randn(4, 40, device=device), torch.randn(4, 40, device=device)
    row_scale = torch.rand(4, device=device, requires_grad=True)
    y, z = fused(x, residual, (40,), p=0.0, row_scale=row_scale, prenorm=True)
    torch.testing.assert_close(z, residual + x * row_scale[:, None])
    torch.testing.assert_close(y, torchs(z, (40,)))
    assert torch.autograd.grad(y.sum(), row_scale)[0] is not None
    assert fused(x[:0], x[:0], (40,), p=0.5).shape == (0, 40)
    y, z = torch.func.vmap(lambda x: fused(x, x, (40,), p=0.0, prenorm=True))(x)
    torch.testing.assert_close(y, torchs(2 * x, (40,)))
    assert launches == []


@every_norm
def test_errors(device, norm):
    fused = NORMS[norm][0]
    x = torch.randn(2, 4, 8, device=device)
    with pytest.raises(
        ValueError, match=r"expected a residual of the input's shape \[2, 4, 8\], got \[8\]: expand it"
    ):
        fused(x, x[0, 0], (8,))
    with pytest.raises(ValueError, match=r"expected layer_scale of shape \(8,\), got \(1,\)"):
        fused(x, x, (8,), layer_scale=x[0, 0, :1])
    for bad in (x[0, 0], x[:, :, 0].t(), x, x[0, 0, 0]):
        with pytest.raises(
            ValueError, match=r"expected row_scale's shape to be \(2, 4\) or the beginning of it"
        ):
            fused(x, x, (8,), row_scale=bad)
    for p in (-0.1, 1.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            fused(x, x, (8,), p=p)
    with pytest.raises(RuntimeError, match="normalized_shape"):
        fused(x, x, (7,))
    with pytest.raises(TypeError, match=r"expected generator to be a torch\.Generator"):
        fused(x, x, (8,), generator=3)


def test_masks_of_other_functions_are_refused(device):
    with pytest.raises(ValueError, match=r"expected one of normreg\.functional's dropout, dropout1d"):
        dropout_mask(F.dropout, torch.ones(3, device=device))
