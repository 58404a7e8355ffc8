"""Patterns that stay as they are, because fused they could be wrong, and what the report says of them."""

import pytest
import torch
import torch.nn.functional as F
from fusible import Twice, assert_left_alone, fresh_graphs, model_of, patterns  # noqa: F401
from torch import nn

import normreg


def used_elsewhere(m, x):
    y = m.norm(x)
    return m.act(y) + y


def returned(m, x):
    y = m.norm(x)
    m.last = y
    return m.act(y)


def sum_used_elsewhere(m, x):
    y = m.norm(x) + x
    return m.act(y) * y


def input_overwritten(m, x):
    return m.drop(m.inplace(x))


def input_overwritten_by_a_method(m, x):
    return m.drop(x.relu_())


def input_overwritten_by_dropout(m, x):
    return F.dropout(x, 0.5, m.training, inplace=True) + m.linear(x)


def overwritten_between(m, x):
    x = x * 1
    y = m.norm(x)
    x.mul_(2)
    return m.act(y) + x


def residual_overwritten_between(m, x):
    x = x * 1
    y = m.norm(m.linear(x.detach())) + x
    x.mul_(2)
    return m.act(y)


def stream_overwritten_between(m, x):
    z = x + m.linear(x)
    w = z * 3
    z.mul_(2)
    return m.layer_norm(z) + w


def a_view_overwritten_between(m, x):
    x = x * 1
    view = x.view(-1)
    y = m.norm(x)
    view.mul_(2)
    return m.act(y)


def an_element_set_between(m, x):
    x = x * 1
    y = m.norm(x)
    x[0, 0] = 1
    return m.act(y) + x


def activated_in_place_between(m, x):
    x = x * 1
    y = m.norm(x)
    F.relu(x, inplace=True)
    return m.act(y) + x


def overwrites_a_view(m, x):
    y = m.linear(x)
    return m.drop(m.inplace(y.view(-1, 8))) * y


def overwrites_what_a_module_passes_on(m, x):
    return m.drop(m.inplace(m.same(x))) * x


def adds_to_the_input(m, x):
    x += m.linear(x)
    return m.layer_norm(x)


def dropped_in_place_between(m, x):
    x = x * 1
    y = m.norm(x)
    F.dropout(x, 1.0, True, True)
    return m.act(y) + x


@torch.library.custom_op("normreg_tests::halve", mutates_args=("x",))
def halve(x: torch.Tensor) -> None:
    x.mul_(0.5)


def an_operator_writes_between(m, x):
    x = x * 1
    y = m.norm(x)
    torch.ops.normreg_tests.halve(x)
    return m.act(y) + x


def adds_to_the_input_by_a_method(m, x):
    return m.layer_norm(x.add_(m.linear(x)))


def adds_to_a_kept_value(m, x):
    y = m.linear(x)
    m.last = y
    y += m.norm(x)
    return m.act(y)


def another_name(m, x):
    y = m.norm(x)
    z = y.view(-1, 8)
    y += x
    return m.act(y) + z


def overwritten_later(m, x):
    y = m.linear(x) + 1
    z = m.drop(m.act(y))
    return z * y.mul_(2)


def called_between(m, x):
    y = m.norm(x)
    return m.act(y + m.linear(m.norm(x * 2)))


def buffer_read_between(m, x):
    y = m.norm(x)
    w = x * m.norm.running_mean
    return m.act(y) + w


def residual_kept_for_the_backward(m, x):
    y = x + 1
    return m.silu(m.norm(x) + y) + y.mul_(2)


def residual_handed_out(m, x):
    y = x + 1
    m.last = y
    return m.silu(m.norm(x) + y)


def terms_of_two_dtypes(m, x):
    return m.act(m.norm(x) + x.float())


def weight_of_the_sum(m, x):
    z = x + m.linear(x)
    return normreg.functional.layer_norm(z, (8,), z[0] * 2)


def weight_in_the_sum(m, x):
    z = x + m.linear(x)
    return normreg.functional.layer_norm(z, (8,), z[0])


def the_sum_as_weight(m, x):
    z = x[0] + m.linear(x[0])
    return normreg.functional.layer_norm(z, (8,), z)


ELSEWHERE = "what {} returns is used elsewhere, too"
OVERWRITES = "{} overwrites a value that may be used elsewhere"
BETWEEN = "{}, called after it, may overwrite what {} reads"
LATER = "mul_, called after it, may overwrite what the backward would need"
LEFT = [
    (used_elsewhere, ELSEWHERE.format("norm")),
    (returned, ELSEWHERE.format("norm")),
    (sum_used_elsewhere, ELSEWHERE.format("+")),
    (input_overwritten, OVERWRITES.format("inplace")),
    (input_overwritten_by_a_method, OVERWRITES.format("relu_")),
    (input_overwritten_by_dropout, OVERWRITES.format("dropout")),
    (overwritten_between, BETWEEN.format("mul_", "norm")),
    (residual_overwritten_between, BETWEEN.format("mul_", "norm")),
    (stream_overwritten_between, BETWEEN.format("mul_", "+")),
    (a_view_overwritten_between, BETWEEN.format("mul_", "norm")),
    (an_element_set_between, BETWEEN.format("setitem", "norm")),
    (activated_in_place_between, BETWEEN.format("relu", "norm")),
    (dropped_in_place_between, BETWEEN.format("dropout", "norm")),
    (an_operator_writes_between, BETWEEN.format("halve", "norm")),
    (overwrites_a_view, OVERWRITES.format("inplace")),
    (overwrites_what_a_module_passes_on, OVERWRITES.format("inplace")),
    (adds_to_the_input, OVERWRITES.format("+")),
    (adds_to_the_input_by_a_method, OVERWRITES.format("+")),
    (adds_to_a_kept_value, OVERWRITES.format("+")),
    (another_name, ELSEWHERE.format("norm")),
    (overwritten_later, LATER),
    (residual_kept_for_the_backward, LATER),
    (residual_handed_out, "the backward would need a value that the caller may overwrite"),
    (terms_of_two_dtypes, "the terms of the sum are torch.float64 and torch.float32"),
    (weight_of_the_sum, "getitem uses the sum before what layer_norm.default reads is there"),
    (weight_in_the_sum, "getitem uses the sum before what layer_norm.default reads is there"),
    (the_sum_as_weight, ELSEWHERE.format("+")),
    (called_between, BETWEEN.format("norm", "norm")),
    (buffer_read_between, "* is called in between, too"),
]


@pytest.mark.parametrize(("forward", "reason"), LEFT, ids=[forward.__name__ for forward, _ in LEFT])
def test_patterns_left_alone(device, forward, reason):
    assert_left_alone(forward, reason, device, ["norm -> act"] * (forward is called_between))


def test_what_the_caller_may_overwrite_is_not_kept(device):
    """The residual is the caller's; unfused, no backward needs it, so that the caller may write into it."""

    class Gated(Twice):
        def forward(self, x, y):
            return self.compute(self.norm(x) + y)

    model = Gated(nn.functional.silu).double().to(device)
    x, y = (torch.randn(5, 8, device=device, dtype=torch.float64) for _ in range(2))
    report = normreg.replace(model, fuse=True, example_inputs=(x, y))
    assert [skip.reason for skip in report.not_fused] == [
        "the backward would need a value that the caller may overwrite"
    ]
    z = model(x.requires_grad_(), y)
    y.mul_(2)
    z.sum().backward()
    model.eval()
    with torch.no_grad():
        assert patterns(normreg.explain(model, x, y)) == ["norm -> + -> silu"]


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_what_a_layer_keeps_anyway(device, frozen):
    """A linear layer keeps its input for the gradient of its weight, and else the caller may overwrite it."""

    class Gated(Twice):
        def forward(self, x, y):
            return self.compute(self.norm(x) + y) + self.linear(y)

    model = Gated(nn.functional.silu).double().to(device)
    model.linear.requires_grad_(not frozen)
    x, y = (torch.randn(5, 8, device=device, dtype=torch.float64) for _ in range(2))
    report = normreg.replace(model, fuse=True, example_inputs=(x, y))
    assert patterns(report) == ["norm -> + -> silu"] * (not frozen)
    z = model(x.requires_grad_(), y)
    if frozen:
        y.mul_(2)
    z.sum().backward()


def test_strides_stay_where_they_can_be_seen(device):
    """A sum of transposed values is one; fused it would not be, so that its view would be refused."""

    def viewed(m, x):
        z = x.transpose(0, 1) + m.drop(m.linear(x.transpose(0, 1)).transpose(0, 1)).transpose(0, 1)
        return m.layer_norm(z), z.transpose(0, 1).view(-1)

    model = model_of(viewed, device)
    x = torch.randn(3, 5, 8, device=device, dtype=torch.float64)
    report = normreg.replace(model, fuse=True, example_inputs=x)
    _, flat = model(x)
    assert flat.shape == (120,)
    assert patterns(report) == []
    assert report.not_fused[0].reason.startswith("the result would have stride")


@pytest.mark.parametrize("device_of", ["meta"])
def test_without_kernels_nothing_is_fused(device_of):
    model = model_of(lambda m, x: x + torch.nn.functional.dropout(m.linear(x), 0.5), device_of)
    x = torch.randn(5, 8, device=device_of, dtype=torch.float64)
    report = normreg.replace(model, fuse=True, example_inputs=x)
    assert (patterns(report), [skip.reason for skip in report.not_fused]) == (
        [],
        ["there is no kernel for meta tensors"],
    )
    assert "nothing is fused in a call with these inputs" in str(report)
