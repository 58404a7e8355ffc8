"""Dropout and stochastic depth with the sum, against torch's operators under the same mask."""

import pytest
import torch
import torch.nn.functional as F
from branches import factors, generator, made
from saved import bytes_beside, saved_by
from support.reference import DTYPES, assert_agrees

import normreg
from normreg import dropout_mask, functional


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7,), (3, 4, 40), (2, 3000)], ids=str)
def test_dropout_add(device, dtype, shape):
    x, residual = made(device, dtype, *shape), made(device, dtype, *shape)
    keep, scale = factors(functional.dropout_add, x, residual, 0.3)
    assert_agrees(
        lambda x, residual: functional.dropout_add(x, residual, 0.3, generator=generator(device)),
        lambda x, residual: residual + torch.where(keep, x * scale, 0),
        [x, residual],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("cols", [3, 200, 2100])
def test_scales(device, dtype, p, cols):
    x, residual, layer_scale = (
        made(device, dtype, *shape) for shape in ((4, 3, cols), (4, 3, cols), (cols,))
    )
    row_scale = torch.rand(4, device=device) + 0.5
    options = dict(p=p, row_scale=row_scale)
    ones = torch.ones_like(layer_scale)
    keep, scale = True, 1.0
    if p:
        keep, scale = factors(functional.dropout_add, x, residual, layer_scale=ones, **options)

    def ours(x, residual, layer_scale):
        return functional.dropout_add(
            x, residual, layer_scale=layer_scale, generator=generator(device), **options
        )

    def theirs(x, residual, layer_scale):
        branch = x if p == 0 else torch.where(keep, x * scale, 0)
        return residual + branch * row_scale.to(x.dtype)[:, None, None] * layer_scale

    assert_agrees(ours, theirs, [x, residual, layer_scale])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("scale_by_keep", [True, False])
def test_drop_path_add(device, memory_format, scale_by_keep, launches):
    x, residual = (
        torch.randn(6, 8, 3, 5, device=device).to(memory_format=memory_format).requires_grad_()
        for _ in range(2)
    )
    options = dict(drop_prob=0.4, training=True, scale_by_keep=scale_by_keep)
    keep, scale = factors(functional.drop_path_add, x, residual, scaled_for=0.4, bits=32, **options)
    assert torch.equal(keep, dropout_mask(functional.drop_path, x, generator=generator(device), **options))
    assert 0 < keep[:, 0, 0, 0].sum() < 6
    launches.clear()
    assert_agrees(
        lambda x, residual: functional.drop_path_add(x, residual, generator=generator(device), **options),
        lambda x, residual: residual + torch.where(keep, x * (scale if scale_by_keep else 1.0), 0),
        [x, residual],
    )
    assert launches == ["dropout_add_kernel"] * 2


def test_drop_path_add_of_rows_with_layer_scale(device):
    x, residual, layer_scale = (made(device, torch.float32, *shape) for shape in ((6, 3, 8), (6, 3, 8), (8,)))
    options = dict(drop_prob=0.4, training=True)
    keep, scale = factors(functional.drop_path_add, x, residual, scaled_for=0.4, bits=32, **options)

    def ours(x, residual, layer_scale):
        return functional.drop_path_add(
            x, residual, layer_scale=layer_scale, generator=generator(device), **options
        )

    def theirs(x, residual, layer_scale):
        return residual + torch.where(keep, x * scale, 0) * layer_scale

    assert_agrees(ours, theirs, [x, residual, layer_scale])


@pytest.mark.parametrize("leading", [(2,), (2, 3), (2, 3, 4)], ids=str)
def test_row_scales_of_channels_last(device, leading):
    """Scales of samples leave the order of memory as it is; others belong to logical positions."""
    x, residual = (
        torch.randn(2, 3, 4, 5, device=device).to(memory_format=torch.channels_last).requires_grad_()
        for _ in range(2)
    )
    row_scale = torch.rand(leading, device=device)
    scale = row_scale.view(*leading, *[1] * (4 - len(leading)))
    ours, theirs = (
        lambda x, residual: functional.dropout_add(x, residual, 0.0, row_scale=row_scale),
        lambda x, residual: residual + x * scale,
    )
    for our, their in zip(*(torch.autograd.grad(f(x, residual), x, x.detach()) for f in (ours, theirs))):
        torch.testing.assert_close(our, their)
    torch.testing.assert_close(ours(x, residual), theirs(x, residual))
    assert ours(x, residual).is_contiguous(memory_format=torch.channels_last) == (len(leading) == 1)


def test_a_residual_of_another_dtype(device):
    x, residual = made(device, torch.bfloat16, 4, 40), made(device, torch.float32, 4, 40)
    z = functional.dropout_add(x, residual, 0.5)
    assert z.dtype == torch.float32
    dx, dresidual = torch.autograd.grad(z, (x, residual), torch.ones_like(z))
    assert (dx.dtype, dresidual.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(dresidual, torch.ones_like(z))


def test_dropped_elements_are_dropped(device):
    x = torch.tensor([float("inf"), float("nan")], device=device).repeat(20).requires_grad_()
    residual = torch.zeros_like(x, requires_grad=False)
    keep = dropout_mask(functional.dropout_add, x, residual, 0.5, generator=generator(device))
    z = functional.dropout_add(x, residual, 0.5, generator=generator(device))
    assert 0 < keep.sum() < 40
    assert torch.equal(z == 0, ~keep)


@pytest.mark.parametrize("leading", [(5,), (5, 3)], ids=str)
def test_the_mask_of_scaled_rows(device, leading):
    """Rows as long as a row scale has them, which are no whole calls of Philox."""
    x = torch.ones(5, 3, 7, device=device)
    options = dict(p=0.5, row_scale=torch.ones(leading, device=device))
    keep = dropout_mask(functional.dropout_add, x, x, generator=generator(device), **options)
    z = functional.dropout_add(x, x, generator=generator(device), **options)
    assert torch.equal(z, torch.where(keep, 3, 1))


def test_nothing_to_do_is_a_sum(device, launches):
    x, residual = torch.randn(4, 40, device=device), torch.randn(4, 40, device=device)
    for z in (
        functional.dropout_add(x, residual, 0.0),
        functional.dropout_add(x, residual, training=False),
        functional.drop_path_add(x, residual, 0.3),
    ):
        assert torch.equal(z, x + residual)
    assert launches == []
    assert torch.equal(functional.dropout_add(x, residual, 1.0), residual)


class TestBytes:
    @pytest.fixture(autouse=True)
    def guarded_memory(self):
        """Guards nothing: guard bands would be counted."""

    @pytest.mark.parametrize(
        "call",
        [
            lambda x, bias: functional.dropout_add(x, x, 0.3),
            lambda x, bias: functional.drop_path_add(x, x, 0.3, True),
            lambda x, bias: functional.bias_act_dropout(x, bias, p=0.3),
            lambda x, bias: functional.dropout_add(x, x, 0.3, layer_scale=bias),
        ],
        ids=["dropout_add", "drop_path_add", "bias_act_dropout", "layer scale"],
    )
    def test_nothing_is_kept_beside_what_is_given(self, device, call):
        x, bias = made(device, torch.float32, 4, 40), made(device, torch.float32, 40)
        _, saved = saved_by(lambda: call(x, bias))
        assert bytes_beside(saved, x, bias) == 0


def test_modules(device):
    x, residual = torch.randn(4, 40, device=device), torch.randn(4, 40, device=device)
    for layer, words in (
        (normreg.DropoutAdd(0.25), "DropoutAdd(p=0.25)"),
        (normreg.DropPathAdd(0.25), "DropPathAdd(drop_prob=0.250)"),
    ):
        assert repr(layer) == words
        assert torch.equal(layer.eval()(x, residual), x + residual)
        torch.manual_seed(0)
        assert not torch.equal(layer.train()(x, residual), x + residual)
    layer = normreg.BiasActDropout(40, act="silu", p=0.25).to(device)
    assert repr(layer) == "BiasActDropout(40, act='silu', p=0.25)"
    assert list(layer.state_dict()) == ["bias"]
    torch.testing.assert_close(layer.eval()(x), F.silu(x))
    for bad in (lambda: normreg.DropoutAdd(1.5), lambda: normreg.BiasActDropout(4, p=-1)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            bad()
    with pytest.raises(ValueError, match="expected act to be None or one of"):
        normreg.BiasActDropout(4, act="tanh")


class TestTorch:
    @pytest.fixture(autouse=True)
    def guarded_memory(self):
        """Guards nothing: a tensor of torch.func has no storage."""

    def test_what_the_kernel_does_not_take(self, device, launches):
        """The call goes to torch's operators, with the generator that is given."""
        x = torch.ones(6, 8, device=device)
        batched = torch.func.vmap(lambda x: functional.dropout_add(x, x, 0.0))(x)
        assert torch.equal(batched, 2 * x)
        for call in (
            lambda x, **given: functional.dropout_add(x, x.detach(), 0.5, **given),
            lambda x, **given: functional.drop_path_add(x, x.detach(), 0.5, True, **given),
            lambda x, **given: functional.bias_act_dropout(x, None, "relu", 0.5, **given),
        ):
            (dx,) = torch.func.vjp(lambda x, call=call: call(x, generator=generator(device)), x)[1](x)
            assert set(dx.unique().tolist()) == {0.0, 2.0}
        assert functional.dropout_add(x[:0], x[:0]).shape == (0, 8)
        assert functional.bias_act_dropout(x[:0], x[0]).shape == (0, 8)
        assert launches == []


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.bias = torch.nn.LayerNorm(8), torch.nn.Parameter(torch.ones(8))

    def forward(self, x):
        p, training = 0.5, self.training
        parameters = self.norm.weight, self.norm.bias
        y, z = functional.dropout_add_layer_norm(x * 2, x, (8,), *parameters, p, training, prenorm=True)
        y = functional.bias_act_dropout(y, self.bias, "relu", p, training)
        return functional.drop_path_add(functional.dropout_add(y, z, p, training), x, p, training)


@pytest.mark.parametrize("training", [True, False])
def test_traced_by_fx(device, training):
    """Each function is one call of the graph, which takes other sizes and launches what the block does."""
    block = Block().to(device).train(training)
    traced = torch.fx.symbolic_trace(block)
    for rows in (5, 7):
        x, results = torch.randn(rows, 8, device=device), []
        for model in (block, traced):
            torch.manual_seed(1)
            results.append(model(x))
        assert torch.equal(*results)
    names = [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"]
    assert {"dropout_add_layer_norm", "bias_act_dropout", "dropout_add", "drop_path_add"} <= {*names}


def test_errors(device):
    x = torch.randn(4, 40, device=device)
    for call in (functional.dropout_add, functional.drop_path_add):
        with pytest.raises(
            ValueError, match=r"expected a residual of the input's shape \[4, 40\], got \[40\]"
        ):
            call(x, x[0])
        with pytest.raises(ValueError, match=r"expected layer_scale of shape \(40,\), got \(4,\)"):
            call(x, x, layer_scale=x[:, 0])
        with pytest.raises(TypeError, match="expected generator to be a torch"):
            call(x, x, generator="cpu")
    with pytest.raises(
        ValueError, match=r"expected row_scale's shape to be \(4,\) or the beginning of it, got"
    ):
        functional.dropout_add(x, x, row_scale=x[0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        functional.dropout_add(x, x, 1.5)
    with pytest.raises(ValueError, match=r"drop_prob to be between 0 and 1, got 1\.5: pass a"):
        functional.drop_path_add(x, x, 1.5, True)
    with pytest.raises(ValueError, match="between 0 and 1"):
        functional.bias_act_dropout(x, p=1.5)
    with pytest.raises(ValueError, match=r"expected a bias of shape \(40,\), got \(4,\)"):
        functional.bias_act_dropout(x, x[:, 0])
    with pytest.raises(ValueError, match="expected act to be None or one of"):
        functional.bias_act_dropout(x, act="tanh")
