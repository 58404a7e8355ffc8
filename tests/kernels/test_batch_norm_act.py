import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from batch_norms import running_for
from formulas import ACTIVATIONS
from over_channels import LAST
from over_channels import regime as regime
from saved import bytes_beside, saved_by
from support.reference import DTYPES, assert_agrees, in_layout, layouts

import normreg
from normreg.functional.batch_norms import batch_norm_act_reason
from normreg.kernels import tiling
from normreg.kernels.device.activations import LINES, NAMES

modes = pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])


def inputs_for(shape, device, dtype=torch.float32, channels_last=False, residual=True):
    images = [torch.randn(shape, device=device, dtype=dtype) for _ in range(1 + residual)]
    if channels_last:
        images = [t.contiguous(memory_format=LAST[t.dim()]) for t in images]
    weight, bias = 2 * torch.randn(2, shape[1], device=device, dtype=dtype)
    return [t.requires_grad_() for t in (images[0], weight, bias, *images[1:])]


def functions(act, training, running):
    """normreg's and torch's function of (x, weight, bias, residual)."""

    def ours(x, weight, bias, residual=None):
        buffers = [buffer.to(x.dtype, copy=True) for buffer in running]
        options = dict(act=act, residual=residual, negative_slope=0.3)
        return normreg.functional.batch_norm_act(x, *buffers, weight, bias, training, 0.3, **options)

    def theirs(x, weight, bias, residual=None):
        buffers = [buffer.to(x.dtype, copy=True) for buffer in running]
        y = F.batch_norm(x, *buffers, weight, bias, training, 0.3)
        return ACTIVATIONS[act](y if residual is None else y + residual)

    return ours, theirs


@pytest.mark.parametrize(("training", "residual"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("act", ACTIVATIONS, ids=str)
def test_agrees_with_torch(device, guarded_memory, launches, act, training, residual, regime):
    shape, channels_last = (2, 17, 7, 7), act not in (None, "relu6", "gelu", "silu")
    inputs = inputs_for(shape, device, channels_last=channels_last, residual=residual)
    inputs = [guarded_memory.place(t) for t in inputs]
    assert_agrees(*functions(act, training, running_for(shape, device)), inputs)
    assert len(launches) == ((2 if training else 1) + 2 if regime == "split" else 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ["relu", "silu"])
def test_every_dtype(device, act, dtype, regime):
    inputs = inputs_for((6, 9, 5, 5), device, dtype, channels_last=True)
    assert_agrees(*functions(act, True, running_for(inputs[0].shape, device)), inputs)


@modes
@pytest.mark.parametrize(
    ("shape", "channels_last"),
    [
        ((4, 5), False),
        ((70, 65), False),
        ((3, 2, 3), False),
        ((9, 3, 33, 32), False),
        ((3, 12, 2, 3, 5), True),
    ],
    ids=str,
)
def test_bits_of_every_layout(device, guarded_memory, shape, channels_last, training, regime):
    inputs = [guarded_memory.place(t) for t in inputs_for(shape, device, channels_last=channels_last)]
    assert_agrees(*functions("leaky_relu", training, running_for(shape, device)), inputs)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("split", ["forward", "backward"])
def test_both_regimes_agree_on_the_bits(device, monkeypatch, split, channels_last):
    monkeypatch.setattr(tiling.channels, f"batch_norm_{split}_tile", lambda *_: None)
    inputs = inputs_for((5, 17, 7, 7), device, channels_last=channels_last)
    assert_agrees(*functions("relu", True, running_for(inputs[0].shape, device)), inputs)


@pytest.mark.parametrize(
    ("wanted", "training"),
    [*((bits, True) for bits in range(1, 16)), (0b1000, False), (0b1001, False), (0b0011, False)],
    ids=lambda value: f"{value:04b}" if type(value) is int else "training" if value else "inference",
)
def test_gradient_of_any_subset(device, wanted, training, regime):
    inputs = inputs_for((4, 3, 2, 5), device)
    for i, t in enumerate(inputs):
        t.requires_grad_(bool(wanted >> i & 1))
    act = "gelu" if wanted in (0b0110, 0b1000, 0b1101, 0b0001) else "relu"
    assert_agrees(*functions(act, training, running_for(inputs[0].shape, device)), inputs)


@pytest.mark.parametrize("layout", layouts(dims=4))
def test_layouts(device, layout):
    x, weight, bias, _ = inputs_for((4, 3, 3, 5), device, channels_last=True)
    strided = in_layout(layout, x)
    residual = strided.detach().requires_grad_()
    act = "silu" if layout == "transposed" else "relu"
    assert_agrees(*functions(act, True, running_for(x.shape, device)), [x, weight, bias, residual], strided)


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("act", NAMES)
def test_where_lines_meet(device, act, residual):
    """With rstd = 1, z is x itself: values and slopes are torch's at the corners and beyond the finite."""
    corners = [-3.0, 0.0, 3.0, 6.0, 1e4, -1e4]
    if act in (*LINES, "hardswish"):
        corners += [float("nan"), float("inf")]
    x = torch.tensor(corners, device=device).view(-1, 1).requires_grad_()
    zero = torch.zeros(1, device=device)
    y = normreg.functional.batch_norm_act(
        x,
        zero,
        zero,
        eps=1.0,
        act=act,
        residual=torch.zeros_like(x) if residual else None,
        negative_slope=0.3,
    )
    expected = ACTIVATIONS[act](x)
    torch.testing.assert_close(y, expected, equal_nan=True)
    slopes = [torch.autograd.grad(t, x, torch.ones_like(x))[0] for t in (y, expected)]
    torch.testing.assert_close(*slopes, equal_nan=True, rtol=1e-5, atol=1e-6)


@modes
@pytest.mark.parametrize("act", ACTIVATIONS, ids=str)
def test_what_is_kept(device, guarded_memory, monkeypatch, act, training):
    """A layer keeps x and the statistics and, with a residual, that or a bit an element."""
    monkeypatch.undo()  # guard bands would be counted
    shape = (3, 4, 2, 5)
    running = running_for(shape, device)
    x, weight, bias, residual = inputs_for(shape, device)
    for added in (None, residual):
        _, saved = saved_by(
            lambda added=added: normreg.functional.batch_norm_act(
                x, *running, weight, bias, training, act=act, residual=added
            )
        )
        bits = 3 * 4 * 2 if act in LINES and added is not None else 0  # 10 positions: 2 bytes
        assert bytes_beside(saved, x, weight, bias, residual) == 4 * (8 + 4 if training else 8) + bits
        kept = {t.data_ptr() for t in saved}
        assert (residual.data_ptr() in kept) == (added is not None and act in NAMES and act not in LINES)


def test_constant_channels_of_huge_values(device, regime):
    """z overflows where a tile has no element, and that must not reach the sums."""
    x = torch.full((3, 5, 6, 7), 3e38, device=device, requires_grad=True)
    weight, bias = (torch.ones(5, device=device, requires_grad=True) for _ in range(2))
    y = normreg.functional.batch_norm_act(x, None, None, weight, bias, training=True, act="silu")
    gradients = torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_residual_that_is_the_input(device, regime):
    x, weight, bias, _ = inputs_for((4, 3, 5), device)
    ours, theirs = functions("relu", True, running_for(x.shape, device))
    assert_agrees(lambda *a: ours(*a, a[0]), lambda *a: theirs(*a, a[0]), [x, weight, bias])


# What torch computes.


def test_unusual_residuals_are_torchs_sum(device, launches):
    x = torch.randn(4, 3, 5, device=device)
    usual = torch.randn_like(x)
    for residual, reason in (
        (usual.double(), "the residual is torch.float64"),
        (usual[:1], "of the input's shape"),
        (usual.to_sparse(), "of the input's shape"),
        (torch._neg_view(usual), "lazily negated"),
    ):
        ours, theirs = functions("silu", True, running_for(x.shape, device))
        weight, bias = torch.randn(2, 3, device=device)
        assert torch.equal(ours(x, weight, bias, residual), theirs(x, weight, bias, residual))
        arguments = x, residual, 0.0, None, None, None, None, True, 0.1, 1e-5, None
        assert reason in batch_norm_act_reason(*arguments)
    assert not launches


def test_another_activation_is_refused(device):
    with pytest.raises(
        ValueError, match=r"expected act to be None or one of relu, .*, got 'tanh': use act=None"
    ):
        normreg.BatchNormAct2d(3, act="tanh")
    for layer in (normreg.BatchNormAct2d, normreg.SyncBatchNormAct):
        example = rf"{layer.__name__}\(3, act='relu'\)"
        with pytest.raises(TypeError, match=rf"^expected eps, .* a number, got 'relu': pass .* {example}$"):
            layer(3, "relu")
    with pytest.raises(ValueError, match="got 'swish'"):
        normreg.functional.batch_norm_act(torch.zeros(2, 3), None, None, training=True, act="swish")


# The module.


def test_module(device):
    """The module has the state of torch's BatchNorm, its behaviour in both modes, and an activation."""
    torch.manual_seed(1)
    ours = normreg.BatchNormAct2d(3, momentum=None, device=device, act="leaky_relu", negative_slope=0.3)
    theirs = torch.nn.BatchNorm2d(3, momentum=None, device=device)
    assert isinstance(ours, torch.nn.BatchNorm2d)
    ending = ", act='leaky_relu', negative_slope=0.3)"
    assert repr(ours) == f"BatchNormAct2d{repr(theirs).removeprefix('BatchNorm2d')[:-1]}{ending}"
    torch.nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    for training in (True, True, False):
        x, residual = torch.randn(2, 4, 3, 5, 5, device=device)
        expected = F.leaky_relu(theirs.train(training)(x) + residual, 0.3)
        torch.testing.assert_close(ours.train(training)(x, residual), expected)
        for mine, its in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(mine, its)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert repr(twin) == repr(ours)
        assert torch.equal(twin(x, residual), ours(x, residual))
    with pytest.raises(ValueError, match="expected 4D input"):
        ours(x[0])


def test_replace_and_restore_leave_it(device):
    model = torch.nn.Sequential(normreg.BatchNormAct1d(4), torch.nn.BatchNorm1d(4)).to(device)
    assert not normreg.replace(model).skipped
    assert [type(m) for m in model] == [normreg.BatchNormAct1d, normreg.BatchNorm1d]
    normreg.restore(model)
    assert [type(m) for m in model] == [normreg.BatchNormAct1d, torch.nn.BatchNorm1d]


def test_explain_names_it(device):
    model = torch.nn.Sequential(normreg.BatchNormAct1d(4)).to(device)
    (call,) = normreg.explain(model, torch.randn(3, 4, device=device))
    assert (call.layer, call.name) == ("normreg.BatchNormAct1d", "0")
    assert call.path == "kernel"


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = normreg.BatchNormAct2d(3)

    def forward(self, x):
        return self.norm(x + 1, residual=x)


def test_is_a_leaf_of_traced_graphs(device):
    block = Block().to(device)
    traced = torch.fx.symbolic_trace(block)
    assert [node.op for node in traced.graph.nodes].count("call_module") == 1
    x = torch.randn(4, 3, 5, 5, device=device)
    assert torch.equal(traced(x), block(x))
