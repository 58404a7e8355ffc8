"""The norms of queries and keys: where their heads lie, which of them are there, and what is refused."""

import itertools

import pytest
import torch
from heads import VIEWS, G, H, joined, packed, parameters, split
from operations import LIBRARIES
from support.reference import DTYPES, assert_agrees, gradient_layouts

import normreg
from normreg import functional
from normreg.functional import dispatch
from normreg.kernels import tiling
from normreg.kernels.heads import dense_heads_like, heads_of

NORMS = pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
COPIED = {"elements apart", "without the first token"}  # which has three strides


def functions(views, D, norm, names):
    """Ours and torch's, of (projection, *parameters)."""

    def of(library):
        def call(projection, *given):
            return joined(library.qk_norm(*views(projection, D), **dict(zip(names, given)), norm=norm))

        return call

    return [of(LIBRARIES[name]) for name in ("normreg", "torch")]


def check(device, views, D, dtype, norm="rms_norm", place=lambda t: t):
    given = parameters(device, D, dtype, norm)
    inputs = [place(packed(device, D, dtype)), *map(place, given.values())]
    inputs = [t.detach().requires_grad_() for t in inputs]
    assert_agrees(*functions(views, D, norm, [*given]), inputs)


@NORMS
@pytest.mark.parametrize("view", VIEWS)
def test_heads_wherever_they_lie(device, launches, guarded_memory, view, norm):
    check(device, VIEWS[view], 16, torch.float32, norm, guarded_memory.place)
    assert launches == ["qk_norm_forward_kernel", "qk_norm_backward_kernel", *["column_sums_kernel"] * (
        2 if norm == "layer_norm" else 1
    )]  # fmt: skip


@pytest.mark.some(8)
@NORMS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [1, 3, 17, 64, 80, 100, 127, 128, 256, 1025])
def test_sizes_of_heads(device, guarded_memory, D, dtype, norm):
    check(device, split, D, dtype, norm, guarded_memory.place)


@pytest.mark.parametrize("view", VIEWS)
def test_results_lie_as_empty_like_has_them(device, view):
    q, k = VIEWS[view](packed(device, 8, torch.float32), 8)
    for x, y in zip((q, k), functional.qk_norm(q, k)):
        expected = torch.empty_like(x) if torch.empty_like(x).stride(-1) == 1 else torch.empty(x.shape)
        assert y.stride() == expected.stride()
    moved, _ = heads_of(q, dense_heads_like(q, q.dtype))
    assert (moved is not q) == (view in COPIED)


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 33])
def test_rows_beside_a_tile(device, monkeypatch, guarded_memory, rows):
    """Two programs of the backward at most, of tiles of 4 heads; of keys there may be fewer tiles."""
    tile = tiling.heads.qk_norm_backward_tile(256, torch.float32)
    assert tile.rows in (1, 4)
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 2)
    x = [torch.randn(n, 1, 256, device=device) for n in (rows, 5)]
    inputs = [guarded_memory.place(t).requires_grad_() for t in (*x, *torch.randn(2, 256, device=device))]
    ours, theirs = (lambda *t, f=LIBRARIES[name].qk_norm: joined(f(*t)) for name in ("normreg", "torch"))
    assert_agrees(ours, theirs, inputs)


SUBSETS = [wanted for wanted in itertools.product([True, False], repeat=6) if sum(wanted) in (1, 5)]


@pytest.mark.parametrize("wanted", SUBSETS, ids=str)
def test_gradient_of_any_subset(device, wanted):
    D = 8
    given = parameters(device, D, torch.float32, "layer_norm")
    inputs = [torch.randn(3, n, D, device=device) for n in (H, G)] + [*given.values()]
    inputs = [t.detach().requires_grad_(want) for t, want in zip(inputs, wanted)]

    def of(library):
        return lambda q, k, *t: joined(library.qk_norm(q, k, **dict(zip(given, t)), norm="layer_norm"))

    assert_agrees(of(LIBRARIES["normreg"]), of(LIBRARIES["torch"]), inputs)


@pytest.mark.parametrize("of", [0, 1], ids=["queries", "keys"])
def test_gradient_of_one_result(device, of):
    """Nothing reaches the other, whose parameters have no gradient, as torch's."""
    inputs = [torch.randn(3, n, 8, device=device, requires_grad=True) for n in (H, G)]
    inputs += [torch.randn(8, device=device, requires_grad=True) for _ in range(2)]
    dy, found = torch.randn_like(inputs[of]), []
    for name in ("normreg", "torch"):
        y = LIBRARIES[name].qk_norm(*inputs)[of]
        found.append(torch.autograd.grad(y, inputs, dy, allow_unused=True))
    for number, (ours, theirs) in enumerate(zip(*found)):
        assert (ours is None) == (theirs is None) == (number % 2 != of)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("view", ["contiguous", "dense, transposed", "split"])
def test_incoming_gradients_of_every_layout(device, view):
    q, k = (x.detach().requires_grad_() for x in VIEWS[view](packed(device, 8, torch.float32), 8))
    ours, theirs = (LIBRARIES[name].qk_norm(q, k) for name in ("normreg", "torch"))
    for (_, dq), (_, dk) in zip(gradient_layouts(q), gradient_layouts(k)):
        found = torch.autograd.grad(ours, (q, k), (dq, dk), retain_graph=True)
        expected = torch.autograd.grad(theirs, (q, k), (dq, dk), retain_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert found[0].stride() == torch.empty_like(q).stride()


@NORMS
def test_eps_of_none_is_the_norms(device, norm):
    """It is as large as the variance here."""
    eps = 1e-5 if norm == "layer_norm" else torch.finfo(torch.float32).eps
    q = torch.randn(3, 2, 16, device=device) * eps**0.5
    for left_out, given in zip(
        functional.qk_norm(q, q, norm=norm), functional.qk_norm(q, q, None, None, eps, norm=norm)
    ):
        assert torch.equal(left_out, given)
        torch.testing.assert_close(left_out, LIBRARIES["torch"].qk_norm(q, q, norm=norm)[0])


def test_a_head_does_not_depend_on_the_others(device):
    q, k = (torch.randn(2, 40, n, 48, device=device) for n in (H, G))
    weights = torch.randn(2, 48, device=device)
    together = functional.qk_norm(q, k, *weights)
    for t in (0, 7, 39):
        alone = functional.qk_norm(q[:1, t : t + 1], k[:1, t : t + 1], *weights)
        assert all(torch.equal(a[0, 0], b[0, t]) for a, b in zip(alone, together))


def test_heads_too_wide_for_a_tile(device, launches):
    D = tiling.heads.widest(torch.float32) + 8
    inputs = [torch.randn(2, 1, D, device=device, requires_grad=True) for _ in range(2)]
    reasons = []
    with dispatch.watched(lambda operation, x, why: reasons.append((operation, why))):
        functional.qk_norm(*inputs)
    assert reasons[0][0] == "qk_norm"
    assert "more elements than the" in reasons[0][1]
    assert not any(name.startswith("qk_norm") for name in launches)


@NORMS
def test_the_widest_heads(device, launches, norm):
    D = tiling.heads.widest(torch.float32)
    inputs = [torch.randn(2, 1, D, device=device, requires_grad=True) for _ in range(2)]
    ours, theirs = (
        lambda *t, f=LIBRARIES[name].qk_norm: joined(f(*t, norm=norm)) for name in ("normreg", "torch")
    )
    assert_agrees(ours, theirs, inputs)
    assert launches[0] == "qk_norm_forward_kernel"


@NORMS
def test_the_module_has_the_names_of_attention_layers(device, norm):
    bias = norm == "layer_norm"
    module = normreg.QKNorm(8, 0.1, norm=norm, bias=bias, device=device)
    names = [f"{of}_norm.{name}" for of in "qk" for name in ("weight", *["bias"] * bias)]
    assert [*module.state_dict()] == names
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    q, k = (torch.randn(2, 3, n, 8, device=device) for n in (H, G))
    for ours, x, of in zip(module(q, k), (q, k), (module.q_norm, module.k_norm)):
        torch.testing.assert_close(ours, of(x))
    assert not [*normreg.QKNorm(8, elementwise_affine=False, norm=norm).parameters()]


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "torch"])
def test_wrong_calls_are_refused(device, monkeypatch, launches, kernel):
    if not kernel:
        monkeypatch.setattr(dispatch.cpu, "KERNELS", None)
        device = torch.device("cpu")
    q, k, weight = (torch.randn(*shape, device=device) for shape in ((2, 4, 8), (2, 2, 8), (8,)))
    for arguments, options, message in [
        ((q, k[..., :4]), {}, "heads of q and k of one size, got 8 and 4"),
        ((q, k.double()), {}, r"q and k of one dtype, got torch\.float32 and torch\.float64"),
        ((q, k.to("meta")), {}, "q and k of one device"),
        ((q, k, weight[:4]), {}, r"a q_weight of shape \(8,\).*got \(4,\)"),
        ((q, k, None, weight[None]), {}, r"a k_weight of shape \(8,\)"),
        ((q, k, weight, weight), dict(norm="layer_norm", k_bias=weight[:1]), "a k_bias of shape"),
        ((q, k, weight, weight), dict(q_bias=weight), "no bias with norm="),
        ((q, k), dict(norm="rms"), "a norm of rms_norm, layer_norm, got 'rms'"),
        ((q, k), dict(rotary=weight), r"rotary to be two tensors, \(cos, sin\)"),
        ((q, k), dict(rotary=(weight, weight[:4])), r"cos and sin of one shape and dtype, got \(8,\)"),
        (
            (q, k),
            dict(rotary=(weight[:3], weight[:3])),
            r"cos and sin of \(\*, R\) with an even R of at most 8, .*got \(3,\)",
        ),
        (
            (q[..., :4], k[..., :4]),
            dict(rotary=(q, q)),
            r"cos and sin of \(\*, R\) with an even R of at most 4, .*got \(2, 4, 8\)",
        ),
        (
            (q, k),
            dict(rotary=(k, k), interleaved=True),
            r"cos and sin that broadcast to q, .*got \(2, 2, 8\)",
        ),
        ((q, k), dict(rotary=(q, q)), r"cos and sin that broadcast to k"),
        ((q, 3), {}, r"a k of shape \(\*, D\), got 3"),
        ((q[0, 0, 0], k), {}, r"a q of shape \(\*, D\), got shape \(\)"),
    ]:
        with pytest.raises(ValueError, match=f"expected {message}"):
            functional.qk_norm(*arguments, **options)
    assert not launches
