"""RMSNorm and a gate, in both orders, of whole rows and of groups, against torch's operators."""

import itertools

import pytest
import torch
from gated_norms import KERNELS, assert_gated, every_order, made
from support.reference import (
    DTYPES,
    IN_TILES,
    RAGGED,
    WIDE,
    assert_accurate,
    assert_agrees,
)

import normreg
from bench.operations.rms_norm_gated import in_wider
from normreg import functional
from normreg.kernels import tiling

FLUSHED = 2.0**-119  # of smaller results exp(z) is no normal number, and 0 on a GPU


@pytest.mark.some(16)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ["silu", "sigmoid"])
@pytest.mark.parametrize("cols", [*RAGGED, 64, 1024, 4097, IN_TILES, WIDE])
@every_order
def test_agrees_with_torch(device, guarded_memory, cols, dtype, act, order):
    inputs = made(device, dtype, 5 if cols > 1025 else 70, cols)
    assert_gated([guarded_memory.place(t) for t in inputs], act=act, **order)


@pytest.mark.some(8)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("groups", "size"), [(2, 1), (3, 5), (5, 64), (8, 24), (2, 1040)])
@every_order
def test_groups(device, guarded_memory, launches, groups, size, dtype, order):
    inputs = made(device, dtype, 19, groups * size)
    assert_gated([guarded_memory.place(t) for t in inputs], group_size=size, **order)
    assert launches == KERNELS


@pytest.mark.some(4)
@pytest.mark.parametrize("cols", [WIDE])
@pytest.mark.parametrize("group_size", [None, WIDE // 2])
@every_order
def test_groups_too_wide_to_be_held(device, launches, cols, group_size, order):
    """They are rows of RMSNorm."""
    assert_gated(made(device, torch.float32, 3, cols), group_size=group_size, **order)
    assert {name.split("_")[0] for name in launches} == {"layer"}


@pytest.mark.parametrize(
    ("cols", "dtype", "gate_dtype", "out_dtype", "held"),
    [
        (8192, torch.bfloat16, torch.bfloat16, None, True),
        (8193, torch.bfloat16, torch.bfloat16, None, False),
        (4096, torch.float16, torch.float32, None, True),
        (4096, torch.float16, torch.float16, torch.float32, True),
        (4097, torch.float16, torch.float16, torch.float32, False),
        (4097, torch.float16, torch.float32, None, False),
        (4097, torch.float32, torch.float32, None, False),
        (2048, torch.float64, torch.float64, None, True),
        (2049, torch.float64, torch.float64, None, False),
    ],
    ids=str,
)
def test_the_widest_group_that_is_held(device, launches, cols, dtype, gate_dtype, out_dtype, held):
    x, gate, *_ = made(device, torch.float32, 2, cols)
    x, gate = (t.detach().to(dtype).requires_grad_() for t, dtype in ((x, dtype), (gate, gate_dtype)))
    y = functional.rms_norm_gated(x, gate, out_dtype=out_dtype)
    y.sum().backward()
    assert launches[0].startswith("gated_norm" if held else "layer_norm")
    assert y.dtype == (out_dtype or dtype)
    assert_accurate(y.to(dtype), in_wider(x, gate), in_wider(x.double(), gate.double()))


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 131])
@every_order
def test_rows_beside_a_tile(device, guarded_memory, rows, order):
    """cols = 64 makes tiles of 16 rows, and 131 rows two programs of the backward."""
    assert (
        tiling.modulated.gated_norm_forward_tile(tiling.rows.Rows(1, 99, 64, False), torch.float32).rows == 16
    )
    inputs = [guarded_memory.place(t) for t in made(device, torch.float32, rows, 64)]
    assert_gated(inputs, **order)


@pytest.mark.parametrize("present", [*itertools.product([True, False], repeat=2)], ids=str)
@pytest.mark.parametrize("group_size", [None, 8])
@every_order
def test_absent_parameters(device, present, group_size, order):
    assert_gated(made(device, torch.float32, 3, 24, present=present), group_size=group_size, **order)


@pytest.mark.some(12)
@pytest.mark.parametrize("wanted", [*itertools.product([True, False], repeat=4)][:-1], ids=str)
@every_order
def test_gradient_of_any_subset(device, wanted, order):
    inputs = made(device, torch.float32, 33, 24)
    for t, want in zip(inputs, wanted, strict=True):
        t.requires_grad_(want)
    assert_gated(inputs, **order)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("float32", ["gate", "parameters", "all"])
@every_order
def test_float32_beside_16_bits(device, dtype, float32, order):
    """Either of gate and parameters, whose gradients have their dtypes."""
    x, gate, *parameters = made(device, dtype, 9, 72)
    wide = [float32 in ("gate", "all"), *[float32 in ("parameters", "all")] * 2]
    others = [
        t.detach().float().requires_grad_() if is_wide else t
        for t, is_wide in zip((gate, *parameters), wide, strict=True)
    ]
    assert_gated([x, *others], **order)


def test_parameters_of_two_dtypes_are_torchs(device, launches):
    x, gate, weight, bias = made(device, torch.bfloat16, 3, 8)
    y = functional.rms_norm_gated(x, gate, weight, bias.float())
    assert not any(name.startswith("gated") for name in launches)
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("eps", [0.0, 1e-12, 0.1])
@every_order
def test_eps(device, eps, order):
    x, *others = made(device, torch.float32, 6, 40)
    x = (x.detach() * (eps**0.5 or 1.0)).requires_grad_()
    assert_gated([x, *others], eps=eps, **order)


@every_order
def test_rows_of_zeros_and_closed_gates(device, order):
    x, gate, *parameters = made(device, torch.float32, 4, 24)
    with torch.no_grad():
        x[1], gate[2], gate[3] = 0.0, 0.0, -200.0
    assert_gated([x, gate, *parameters], **order)


@every_order
def test_a_row_does_not_depend_on_the_others(device, order):
    x, gate, *parameters = (t.detach() for t in made(device, torch.float32, 200, 96))
    together = functional.rms_norm_gated(x, gate, *parameters, **order)
    alone = [functional.rms_norm_gated(*row, *parameters, **order) for row in zip(x[::20], gate[::20])]
    assert torch.equal(together[::20], torch.stack(alone))


@pytest.mark.parametrize("group_size", [None, 16])
@every_order
def test_many_partial_sums(device, monkeypatch, group_size, order):
    """As many programs as a large GPU runs: more partial sums than the finish adds at a time."""
    monkeypatch.setattr(tiling.hardware, "multiprocessors", lambda device: 64)
    monkeypatch.setattr(tiling.partials, "COLUMN_SUMS_WORDS", 256)
    assert_gated(made(device, torch.float32, 16 * 8 * 33, 64), group_size=group_size, **order)


@every_order
def test_two_backward_passes_are_equal(device, order):
    inputs = made(device, torch.float32, 300, 64)
    y = functional.rms_norm_gated(*inputs, group_size=32, **order)
    dy = torch.randn_like(y)
    first = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    second = torch.autograd.grad(y, inputs, dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_what_is_saved(device):
    """x and gate where they are, the parameters, and a float32 of each group of a row."""
    saved = []
    x, gate, weight, _ = made(device, torch.bfloat16, 12, 32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        functional.rms_norm_gated(x, gate, weight, group_size=8)
    expected = [(torch.bfloat16, 384), (torch.bfloat16, 384), (torch.bfloat16, 32), (torch.float32, 48)]
    assert [(t.dtype, t.numel()) for t in saved] == expected


@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_no_gate_is_rms_norm(device, group_size, bias):
    x, _, *parameters = made(device, torch.bfloat16, 5, 8, present=(True, bias))
    assert_agrees(
        lambda x, *t: functional.rms_norm_gated(x, None, *t, group_size=group_size),
        lambda x, *t: in_wider(x, None, *t, group_size=group_size),
        [x, *parameters],
    )
    whole = functional.rms_norm_gated(x, None, parameters[0])
    assert torch.equal(whole, functional.rms_norm(x, (8,), parameters[0], 1e-5))


SIZES = [(torch.bfloat16, None), (torch.float16, None), (torch.float32, (-87, 90))]


@pytest.mark.parametrize("act", ["silu", "sigmoid"])
@pytest.mark.parametrize(("dtype", "between"), SIZES, ids=["bfloat16", "float16", "float32"])
def test_gates_of_all_inputs(device, act, dtype, between):
    """y of rows of ones is act(gate) itself, and the gradient of the gate its slope."""
    if between is None:
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        z = every[every.abs() < 1e30].to(device)  # of which eight have a sum
    else:
        z = torch.linspace(*between, 200_001, device=device)
    z = z[: len(z) // 8 * 8].view(-1, 8).requires_grad_()
    y = functional.rms_norm_gated(torch.ones_like(z), z, eps=0.0, act=act)
    slope = torch.autograd.grad(y, z, torch.ones_like(y))[0]
    e = torch.exp(-z.detach().double().abs())
    gate = torch.where(z >= 0, 1, e) / (1 + e)
    steep = e / (1 + e) ** 2
    value, exact = gate, steep
    if act == "silu":
        value, exact = z.detach() * gate, gate + (z.detach() * steep).nan_to_num(0)
    info = torch.finfo(dtype)
    sizes = value.abs(), torch.maximum(exact.abs(), gate) if act == "silu" else exact  # which cancels below 0
    for result, true, size in zip((y, slope), (value, exact), sizes, strict=True):
        unit = size.clamp(min=info.smallest_normal) * info.eps
        errors = (result.double() - true).abs() / unit
        error = errors.masked_fill(true.abs() < FLUSHED, 0).max()
        assert error <= (1.1 if dtype.itemsize == 2 else 6), error  # up to 3.7, and a GPU's exp2 1.4 more


def test_module(device):
    layer = normreg.RMSNormGated(24, 1e-3, group_size=8, norm_before_gate=False, act="sigmoid", device=device)
    assert repr(layer) == (
        "RMSNormGated((24,), eps=0.001, elementwise_affine=True, act='sigmoid', group_size=8, "
        "norm_before_gate=False)"
    )
    torch.nn.init.normal_(layer.weight)
    x, gate = torch.randn(2, 5, 24, device=device)
    assert [*layer.state_dict()] == ["weight"]
    expected = functional.rms_norm_gated(
        x, gate, layer.weight, eps=1e-3, group_size=8, norm_before_gate=False, act="sigmoid"
    )
    assert torch.equal(layer(x, gate), expected)
    assert torch.equal(layer(x, gate=gate), expected)
    without = normreg.RMSNormGated(24, elementwise_affine=False, device=device)
    assert [*without.parameters()] == []
    assert torch.equal(without(x), functional.rms_norm(x, (24,), eps=1e-5))


WRONG = {
    "gate": (dict(gate=(3, 7)), r"a gate of the input's shape \(3, 8\), got \(3, 7\)"),
    "one gate for all rows": (dict(gate=(8,)), r"a gate of the input's shape \(3, 8\), got \(8,\)"),
    "weight": (dict(weight=(4,), group_size=4), r"a weight of shape \(8,\), .* got \(4,\)"),
    "bias": (dict(bias=(1, 8)), r"a bias of shape \(8,\), .* got \(1, 8\)"),
    "group_size": (dict(group_size=3), "a group_size that divides 8, the size of a row, got 3"),
    "no group": (dict(group_size=0), "a group_size that divides 8, the size of a row, got 0"),
    "half a group": (dict(group_size=4.0), r"a group_size that divides 8, the size of a row, got 4\.0"),
    "swish": (dict(act="swish"), "act to be one of silu, sigmoid, got 'swish': pass silu"),
    "relu": (dict(act="relu"), "act to be one of silu, sigmoid, got 'relu'"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "torch"])
def test_bad_calls(device, monkeypatch, launches, given, message, kernel):
    if not kernel:
        monkeypatch.setattr(functional.dispatch.cpu, "KERNELS", None)
        device = torch.device("cpu")
    options = {
        name: torch.randn(value, device=device) if isinstance(value, tuple) else value
        for name, value in (dict(gate=(3, 8)) | given).items()
    }
    with pytest.raises(ValueError, match=f"expected {message}"):
        functional.rms_norm_gated(torch.randn(3, 8, device=device), **options)
    assert launches == []
