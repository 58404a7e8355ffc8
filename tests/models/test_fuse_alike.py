"""What only looks like something to leave alone is fused, and what only looks like a pattern is not."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fusible import assert_close, fresh_graphs, model_of, patterns, step  # noqa: F401
from torch import nn

import normreg


def sum_in_place_of_its_own(m, x):
    y = m.linear(x)
    y += m.norm(x)
    return m.act(y)


def in_place_on_a_new_view(m, x):
    return m.drop(m.inplace(m.linear(x).view(-1, 8)))


def sum_by_a_method(m, x):
    return m.layer_norm(m.linear(x).add_(m.drop(x)))


def kept_anyhow(m, x):
    y = m.linear(x)
    return m.silu(m.norm(x) + y) + m.linear(y)


def three_terms(m, x):
    return m.layer_norm(m.linear(x) + x * 2 + m.drop(x))


def two_dropouts(m, x):
    return m.layer_norm(m.drop(m.linear(x)) + m.drop(x))


def a_written_residual_of_another_pattern(m, x):
    y = m.layer_norm(x + m.drop(m.linear(x)))
    y += m.linear(x)
    return m.layer_norm(y)


def a_sum_that_is_read_before_the_norm(m, x):
    z = x + m.drop(m.linear(x))
    w = z * 3
    return m.layer_norm(z) + w


def a_term_that_broadcasts(m, x):
    return m.layer_norm(m.linear(x) + m.drop(x) + x[:1])


def a_term_that_broadcasts_in_place(m, x):
    y = m.linear(x) + m.linear(x * 2)
    y += x[:1]
    z = m.layer_norm(y)
    return z + y


def scaled_and_shifted_by_rows(m, x):
    return x * 3 + m.layer_norm(x + m.linear(x)) * (1 + m.linear(x))


def scaled_for_all(m, x):
    return m.layer_norm(x).mul_(m.linear(x).mean(0) + 1)


def one_scale_of_two(m, x):
    factor = 1 + m.linear(x)
    return m.layer_norm(x) * factor + m.layer_norm(x * 2) * factor


def scaled_for_all_and_shifted_by_rows(m, x):
    return m.layer_norm(x) * (1 + m.linear(x[:1])) + x * 2


def scaled_by_frames(m, x):
    frames = torch.stack([x, x * 2, x * 3], 1)[None]  # (1, 5, 3, 8)
    return m.layer_norm(frames) * (1 + m.linear(x)[None, :, None]) + m.linear(x * 2)[None, :, None]


def dropped_and_scaled(m, x):
    return m.layer_norm(m.linear(x) + m.drop(x)) * (1 + m.linear(x))


FUSED = [
    (scaled_and_shifted_by_rows, ["+ -> layer_norm -> * -> +"]),
    (scaled_for_all, ["layer_norm -> mul_"]),
    (one_scale_of_two, ["layer_norm -> * -> +", "layer_norm -> *"]),
    (scaled_for_all_and_shifted_by_rows, ["layer_norm -> *"]),
    (scaled_by_frames, ["layer_norm -> * -> +"]),
    (dropped_and_scaled, ["layer_norm -> *", "drop -> +"]),
    (a_sum_that_is_read_before_the_norm, ["drop -> + -> layer_norm"]),
    (a_term_that_broadcasts, ["+ -> + -> layer_norm"]),
    (a_term_that_broadcasts_in_place, ["+ -> + -> layer_norm"]),
    (sum_in_place_of_its_own, ["norm -> + -> act"]),
    (in_place_on_a_new_view, ["inplace -> drop"]),
    (sum_by_a_method, ["drop -> + -> layer_norm"]),
    (kept_anyhow, ["norm -> + -> silu"]),
    (three_terms, ["drop -> + -> layer_norm"]),
    (two_dropouts, ["drop -> + -> layer_norm"]),
    (a_written_residual_of_another_pattern, ["drop -> + -> layer_norm", "+ -> layer_norm"]),
]


@pytest.mark.parametrize(("forward", "fused"), FUSED, ids=[forward.__name__ for forward, _ in FUSED])
def test_and_what_only_looks_alike_is_fused(device, forward, fused):
    model = model_of(forward, device)
    twin, x = copy.deepcopy(model), torch.randn(5, 8, device=device, dtype=torch.float64)
    normreg.replace(twin)
    assert patterns(normreg.replace(model, fuse=True, example_inputs=x)) == fused
    for training in (True, False):
        assert_close(step(model.train(training), x), step(twin.train(training), x))


def a_scaled_sum(m, x):
    return m.act(torch.add(m.norm(x), x, alpha=2))


def a_value_added_to_itself(m, x):
    y = m.norm(x)
    return m.act(y + y)


def scaled_without_one(m, x):
    return m.layer_norm(x) * m.linear(x) + x * 2


def scaled_by_two_and_more(m, x):
    return m.layer_norm(x) * (2 + m.linear(x))


def another_clamp(m, x):
    return F.hardtanh(m.norm(x), -0.5, 0.5)


def dropout_of_channels(m, x):
    return x[None] + m.channels(m.linear(x)[None])


def dropout_of_samples(m, x):
    return x + m.rows(m.linear(x))


NONE = [
    scaled_without_one,
    scaled_by_two_and_more,
    a_scaled_sum,
    a_value_added_to_itself,
    another_clamp,
    dropout_of_channels,
    dropout_of_samples,
]


@pytest.mark.parametrize("forward", NONE, ids=lambda forward: forward.__name__)
def test_what_only_looks_like_a_pattern_is_none(device, forward):
    model = model_of(forward, device)
    model.channels, model.rows = nn.Dropout1d(0.5), normreg.DropPath(0.5)
    twin, x = copy.deepcopy(model), torch.randn(5, 8, device=device, dtype=torch.float64)
    normreg.replace(twin)
    report = normreg.replace(model, fuse=True, example_inputs=x)
    assert (report.fused, report.not_fused) == ((), ())
    for training in (True, False):
        assert_close(step(model.train(training), x), step(twin.train(training), x))
