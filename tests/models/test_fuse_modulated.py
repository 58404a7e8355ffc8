"""Norms that a condition scales and shifts: what is one operator, and what stays as it is."""

import copy

import pytest
import torch
from fusible import assert_close, assert_left_alone, fresh_graphs, model_of, patterns, step  # noqa: F401
from support.reference import error, unit
from torch import nn

import normreg


def modulated_twice(m, x):
    y = m.layer_norm(x)
    return y * (1 + m.linear(x)) + y * (1 + x * 2)


def of_samples_or_of_rows(m, x):
    return m.layer_norm(torch.stack([x] * 5)) * (1 + m.linear(x)) + x * 2


def a_scale_of_a_middle_dimension(m, x):
    return m.layer_norm(torch.stack([x, x * 2])) * (1 + m.linear(x)[None])


def a_wider_scale(m, x):
    return normreg.functional.layer_norm(x.float(), (8,)) * (1 + m.linear(x))


def scale_overwritten_between(m, x):
    scale = m.linear(x)
    factor = 1 + scale
    return m.layer_norm(x) * factor + scale.mul_(2)


def factor_overwritten_between(m, x):
    factor = 1 + m.linear(x)
    y = m.layer_norm(x)
    factor.mul_(2)
    return y * factor


def scale_handed_out(m, x):
    m.last = m.linear(x) * 2
    return m.layer_norm(x) * (1 + m.last)


def scale_of_another_mode(m, x):
    with torch.no_grad():
        factor = 1 + m.linear(x)
    return m.layer_norm(x) * factor


OVERWRITTEN = "mul_, called after it, may overwrite what + reads"
LEFT = [
    (modulated_twice, "what layer_norm returns is used elsewhere, too"),
    (of_samples_or_of_rows, "the scale of shape [5, 8] is not one of samples or rows of [5, 5, 8]"),
    (
        a_scale_of_a_middle_dimension,
        "the scale of shape [1, 5, 8] is not one of samples or rows of [2, 5, 8]",
    ),
    (a_wider_scale, "the input is torch.float32, the scale torch.float64"),
    (scale_overwritten_between, OVERWRITTEN),
    (factor_overwritten_between, OVERWRITTEN),
    (scale_handed_out, "the backward would need a value that the caller may overwrite"),
    (scale_of_another_mode, "a part is computed in another mode, as of autocast or gradients"),
]


@pytest.mark.parametrize(("forward", "reason"), LEFT, ids=[forward.__name__ for forward, _ in LEFT])
def test_modulations_left_alone(device, forward, reason):
    assert_left_alone(forward, reason, device)


@pytest.mark.parametrize(
    ("rows", "modulation"),
    [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)],
    ids=str,
)
def test_modulations_of_another_dtype(device, rows, modulation):
    """Rounded once, where torch's chain rounds each result, 1 + scale as well."""

    class Modulated(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.RMSNorm(64, 1e-6, elementwise_affine=False)

        def forward(self, x, scale, shift):
            return self.norm(x) * (1 + scale * 1) + shift * 1

    model, plain = Modulated(), Modulated()
    inputs = [torch.randn(16, 64, device=device, dtype=dtype) for dtype in (rows, modulation, modulation)]
    report = normreg.replace(model, fuse=True, example_inputs=inputs)
    assert patterns(report) == ["norm -> * -> +"]
    dy = torch.randn(16, 64, device=device, dtype=torch.float64)

    def outcome(m, inputs):
        leaves = [x.clone().requires_grad_() for x in inputs]
        y = m(*leaves)
        return [y, *torch.autograd.grad((y * dy).sum(), leaves)]

    exact = outcome(plain, [x.double() for x in inputs])
    for ours, theirs, truth in zip(outcome(model, inputs), outcome(plain, inputs), exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert error(ours, truth) <= error(theirs, truth) + unit(truth, theirs.dtype)


def scale_is_the_sum(m, x):
    z = x + m.linear(x)
    return m.layer_norm(z) * (1 + z)


def shift_is_the_sum(m, x):
    z = x + m.linear(x)
    return m.layer_norm(z) * (1 + x * 2) + z


def scale_of_the_sum(m, x):
    z = x + m.linear(x)
    return m.layer_norm(z) * (1 + z * 2)


def scale_and_shift_of_the_sum(m, x):
    z = x + m.linear(x)
    scale = z * 2
    return m.layer_norm(z) * (1 + scale) + scale


WITHOUT_THE_SUM = {
    scale_is_the_sum: "layer_norm -> *",
    shift_is_the_sum: "layer_norm -> * -> +",
    scale_of_the_sum: "layer_norm -> *",
    scale_and_shift_of_the_sum: "layer_norm -> * -> +",
}


@pytest.mark.parametrize("forward", WITHOUT_THE_SUM, ids=lambda forward: forward.__name__)
def test_modulations_made_of_the_sum(device, forward):
    """No operator computes the sum that it reads itself."""
    model = model_of(forward, device)
    twin, x = copy.deepcopy(model), torch.randn(5, 8, device=device, dtype=torch.float64)
    report = normreg.replace(model, fuse=True, example_inputs=x + 0)
    assert patterns(report) == [WITHOUT_THE_SUM[forward]]
    assert_close(step(model, x), step(twin, x))


class InFloat32(nn.Module):
    """Wan's way: 16 bits, converted to float32 for each norm and each sum."""

    def __init__(self):
        super().__init__()
        self.first, self.condition = nn.Linear(64, 64), nn.Linear(64, 6 * 64)
        self.attention, self.mlp = nn.Linear(64, 64), nn.Linear(64, 64)
        self.norm1, self.norm2 = (nn.LayerNorm(64, 1e-6, elementwise_affine=False) for _ in range(2))

    def forward(self, x):
        condition = self.condition(x[:, :1]).unflatten(-1, (6, -1)).movedim(2, 0)
        scale1, shift1, gate1, scale2, shift2, gate2 = condition.to(
            torch.promote_types(x.dtype, torch.float32)
        )
        x = self.first(x)
        y = (self.norm1(wide(x)) * (1 + scale1) + shift1).type_as(x)
        x = (wide(x) + self.attention(y) * gate1).type_as(x)
        y = (self.norm2(wide(x)) * (1 + scale2) + shift2).type_as(x)
        x = (wide(x) + wide(self.mlp(y)) * gate2).type_as(x)
        return (self.norm1(wide(x)) * (1 + scale2)).to(x.dtype) + x


def wide(x):
    return x if x.dtype == torch.float64 else x.float()


@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [
        (torch.float16, [" -> type_as", " -> to"]),
        (torch.bfloat16, [" -> type_as", " -> to"]),
        (torch.float32, ["", ""]),
    ],
    ids=["float16", "bfloat16", "float32"],
)
def test_conversions_to_float32_and_back(device, dtype, rounding):
    """They are a part of the operator, which computes in float32 anyway, and nothing in float32."""
    model = InFloat32().to(device, dtype)
    twin, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    x = torch.randn(2, 3, 64, device=device, dtype=dtype)
    report = normreg.replace(model, fuse=True, example_inputs=x)
    rounded, last = rounding
    assert patterns(report) == [
        f"norm1 -> * -> +{rounded}",
        f"* -> +{rounded} -> norm2 -> * -> +{rounded}",
        f"* -> +{rounded} -> norm1 -> *{last}",
    ]
    results = []
    for m, given in ((model, x), (twin, x), (exact, x.double())):
        leaf = given.clone().requires_grad_()
        y = m(leaf)
        results.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *m.parameters()])])
    for ours, theirs, truth in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert error(ours, truth) <= 2 * error(theirs, truth) + 2 * unit(truth, dtype)


def test_a_sum_converted_before_the_scale_is_there(device):
    """The conversion is a part of the operator, so that its place is no hindrance."""

    def converted_first(m, x):
        z = x + m.linear(x)
        wider = z.float()
        return (m.layer_norm(wider) * (1 + m.linear(x * 2))).type_as(z) + z

    model = model_of(converted_first, device).to(torch.bfloat16)
    model.layer_norm.float()
    twin, x = copy.deepcopy(model), torch.randn(5, 8, device=device, dtype=torch.bfloat16)
    report = normreg.replace(model, fuse=True, example_inputs=x + 0)
    assert patterns(report) == ["+ -> layer_norm -> * -> type_as"]
    for ours, theirs in zip(step(model, x), step(twin, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.03 * theirs.abs().max().item())


def test_what_is_converted_stays_the_callers(device):
    """The backward needs the copy in float32 where the caller may overwrite what it was made of."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.scale = nn.RMSNorm(8, 1e-6), nn.Parameter(torch.randn(8))

        def forward(self, x):
            return (self.norm(x.float()) * (1 + self.scale * 1)).type_as(x)

    model, given = Scaled().to(device), torch.randn(3, 8, device=device, dtype=torch.bfloat16)
    report = normreg.replace(model, fuse=True, example_inputs=given)
    assert patterns(report) == ["norm -> * -> type_as"]
    expected = model(given.clone()).sum()
    y = model(given).sum()
    given.mul_(2)
    for loss in (expected, y):
        loss.backward()
