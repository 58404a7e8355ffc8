"""The norms of queries and keys with rotary embedding behind them."""

import pytest
import torch
from heads import VIEWS, B, G, H, T, apart, in_groups, interleaved, joined, packed, parameters, split
from operations import LIBRARIES
from support.reference import assert_agrees

import normreg
from normreg import functional


def angles(device, dtype, *shape):
    drawn = torch.randn(shape, device=device) * 9
    return drawn.cos().to(dtype), drawn.sin().to(dtype)


def in_groups_of_one(projection, D):
    """Keys with a dimension for the queries of their group."""
    q, k = in_groups(projection, D)
    return q, k.unsqueeze(3)


TOKENS_FIRST = {"split": split, "contiguous": VIEWS["contiguous"], "interleaved": interleaved, "apart": apart}
HEADS_FIRST = ("split, transposed", "dense, transposed", "of (B, H, T, D)", "one key")
ROTARY = [(views, sizes) for views in TOKENS_FIRST.values() for sizes in ((T, 1), (B, T, 1), (1, 1))]
ROTARY += [(VIEWS[view], sizes) for view in HEADS_FIRST for sizes in ((T,), (B, 1, T))]
ROTARY += [(in_groups_of_one, (T, 1, 1))]


@pytest.mark.some(24)
@pytest.mark.parametrize(("R", "interleaved"), [(16, False), (16, True), (8, False), (6, True)])
@pytest.mark.parametrize(("views", "sizes"), ROTARY)
def test_rotary(device, launches, guarded_memory, views, sizes, R, interleaved):
    """Angles of all samples and heads, of those of a sample, and some to be laid out for each row."""
    D = 16
    rotary = [guarded_memory.place(t) for t in angles(device, torch.float32, *sizes, R)]
    given = parameters(device, D, torch.float32, "rms_norm")
    inputs = [packed(device, D, torch.float32), *given.values()]
    inputs = [guarded_memory.place(t.detach()).requires_grad_() for t in inputs]

    def of(library):
        def call(projection, *weights):
            q, k = views(projection, D)
            return joined(library.qk_norm(q, k, *weights, rotary=rotary, interleaved=interleaved))

        return call

    assert_agrees(of(LIBRARIES["normreg"]), of(LIBRARIES["torch"]), inputs)
    assert launches == ["qk_norm_forward_kernel", "qk_norm_backward_kernel", "column_sums_kernel"]


def test_rotary_by_layer_norm(device):
    rotary = angles(device, torch.float32, T, 1, 16)
    inputs = [torch.randn(B, T, n, 16, device=device) + 3 for n in (H, G)]
    inputs += [*parameters(device, 16, torch.float32, "layer_norm").values()]

    def of(library):
        def call(q, k, *given):
            q_weight, k_weight, *biases = given
            options = dict(zip(("q_bias", "k_bias"), biases), norm="layer_norm", rotary=rotary)
            return joined(library.qk_norm(q, k, q_weight, k_weight, **options))

        return call

    inputs = [t.detach().requires_grad_() for t in inputs]
    assert_agrees(of(LIBRARIES["normreg"]), of(LIBRARIES["torch"]), inputs)


SIZES = [(2, 2), (6, 6), (64, 64), (80, 80), (128, 128), (256, 256), (7, 4), (80, 32), (100, 50), (256, 64)]


@pytest.mark.some(12)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("angles_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("D", "R"), SIZES)
def test_rotary_of_sizes_in_16_bits(device, launches, angles_dtype, D, R, interleaved):
    cos, sin = angles(device, angles_dtype, T, 1, R)
    q, k = (torch.randn(B, T, n, D, device=device).bfloat16().requires_grad_() for n in (H, G))
    weights = torch.randn(2, D, device=device).bfloat16()

    def exact(dtype):
        rotary, given = (cos.to(dtype), sin.to(dtype)), (t.to(dtype) for t in (q, k, *weights))
        return LIBRARIES["torch"].qk_norm(*given, rotary=rotary, interleaved=interleaved)

    ours = functional.qk_norm(q, k, *weights, rotary=(cos, sin), interleaved=interleaved)
    theirs = exact(torch.float64)
    dy = [torch.randn_like(t) for t in ours]
    found = [*ours, *torch.autograd.grad(ours, (q, k), dy)]
    expected = [*theirs, *torch.autograd.grad(theirs, (q, k), dy)]
    for a, b in zip(found, expected):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.double(), b.double(), rtol=2**-8, atol=2**-8 * b.abs().max().item())
    assert launches == ["qk_norm_forward_kernel", "qk_norm_backward_kernel"]


@pytest.mark.parametrize("interleaved", [False, True])
def test_columns_that_are_not_turned_are_the_norms(device, interleaved):
    """Even beside an infinite weight, which 0 of a sine would make NaN."""
    module = normreg.QKNorm(16, interleaved=interleaved, device=device)
    with torch.no_grad():
        module.q_norm.weight[12] = torch.inf
    q, rotary = torch.randn(B, T, H, 16, device=device), angles(device, torch.float32, T, 1, 8)
    turned, alone = module(q, q, rotary)[0], module(q, q)[0]
    assert torch.equal(turned[..., 8:], alone[..., 8:])
    assert not torch.equal(turned[..., :8], alone[..., :8])
    assert ("interleaved" in repr(module)) == interleaved


def test_angles_that_require_a_gradient_have_one(device, launches):
    q = torch.randn(B, T, H, 8, device=device)
    cos, sin = (t.requires_grad_() for t in angles(device, torch.float32, T, 1, 8))
    found = []
    for library in LIBRARIES.values():
        y = joined(library.qk_norm(q, q, rotary=(cos, sin)))
        found.append(torch.autograd.grad(y.sum(), (cos, sin)))
    torch.testing.assert_close(*found)
    assert launches == []
