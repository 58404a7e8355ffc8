"""Patterns and forwards that `replace(fuse=True)` leaves alone, because fused they could be wrong."""

import copy
import random

import pytest
import torch
from fusible import Twice, assert_close
from torch import nn

import normreg
from normreg.models.fusion import blocks


def used_elsewhere(m, x):
    y = m.norm(x)
    return m.act(y) + y


def sum_used_elsewhere(m, x):
    y = m.norm(x) + x
    return m.act(y) * y


def residual_overwritten(m, x):
    y = m.linear(x)
    y += m.norm(x)
    return m.act(y)


def input_overwritten(m, x):
    return m.drop(m.act(x))


def overwritten_between(m, x):
    y = m.norm(x)
    x.mul_(2)
    return m.act(y) + x


def residual_overwritten_between(m, x):
    y = m.norm(m.linear(x)) + x
    x.mul_(2)
    return m.act(y)


def stream_overwritten_between(m, x):
    z = x + m.linear(x)
    w = z * 3
    z.mul_(2)
    return m.layer_norm(z) + w


class Writer(nn.Module):
    def forward(self, x):
        return x.mul_(2) * 1


def module_writes_between(m, x):
    y = m.norm(x)
    return m.act(y + m.inner(x))


def overwrites_a_view(m, x):
    y = m.linear(x)
    return m.drop(m.inner(y.view(-1, 6))) * y


def overwrites_what_a_module_passes_on(m, x):
    return m.drop(m.inner(m.same(x))) * x


def overwrites_a_hooked_output(m, x):
    return m.drop(m.inner(m.watched(x)))


def adds_to_the_input(m, x):
    x += m.linear(x)
    return m.layer_norm(x)


def another_name(m, x):
    y = m.norm(x)
    z = y
    y += x
    return m.act(y) + z


def overwritten_later(m, x):
    y = m.linear(x)
    z = m.drop(m.act(y))
    return z * y.mul_(2)


def residual_overwritten_later(m, x):
    y = m.linear(x)
    z = m.inner(m.norm(x) + y)
    return z + y.mul_(2)


def called_between(m, x):
    y = m.norm(x)
    return m.act(y + m.linear(m.norm(x * 2)))


ELSEWHERE = "what norm returns is used elsewhere, too"
BETWEEN = "mul_, called after it, may overwrite what {} reads"
WRITES = "inner overwrites a value that may be used elsewhere"
PATTERNS_LEFT = {
    "module writes between": (
        module_writes_between,
        "inner, called after it, may overwrite what norm reads",
        Writer,
    ),
    "known module writes between": (
        module_writes_between,
        "inner, called after it, may overwrite what norm reads",
        lambda: nn.Sequential(nn.ReLU(inplace=True)),
    ),
    "overwrites a view": (overwrites_a_view, WRITES),
    "overwrites what a module passes on": (overwrites_what_a_module_passes_on, WRITES),
    "overwrites a hooked output": (overwrites_a_hooked_output, WRITES),
    "adds to the input": (adds_to_the_input, "+ overwrites a value that may be used elsewhere"),
    "another name": (another_name, ELSEWHERE),
    "overwritten later": (overwritten_later, BETWEEN.format("act")),
    "residual overwritten later": (residual_overwritten_later, BETWEEN.format("norm"), nn.SiLU),
    "called between": (called_between, "norm is called in between, too"),
    "used elsewhere": (used_elsewhere, ELSEWHERE),
    "sum used elsewhere": (sum_used_elsewhere, "what + returns is used elsewhere, too"),
    "residual overwritten": (residual_overwritten, "+ overwrites a value that may be used elsewhere"),
    "input overwritten": (input_overwritten, "act overwrites a value that may be used elsewhere"),
    "overwritten between": (overwritten_between, BETWEEN.format("norm")),
    "residual overwritten between": (residual_overwritten_between, BETWEEN.format("norm")),
    "stream overwritten between": (stream_overwritten_between, BETWEEN.format("+")),
}


def assert_left_as_it_is(model, x, report, reason):
    twin = copy.deepcopy(model)
    normreg.restore(twin)
    assert report.fused == ()
    assert [skip.reason for skip in report.not_fused] == [reason]
    assert not isinstance(model, blocks.Fused)
    with torch.no_grad():  # where backward's inputs are overwritten, torch's raises, too
        assert_close([model(x.clone())], [twin(x.clone())])


@pytest.mark.parametrize("case", PATTERNS_LEFT.values(), ids=PATTERNS_LEFT)
def test_patterns_left_alone(device, case):
    forward, reason, *inner = case
    model = Twice(forward, lambda: nn.ReLU(inplace=forward is input_overwritten)).double().to(device)
    model.inner, model.same, model.watched = nn.ReLU(inplace=True), nn.Identity(), copy.deepcopy(model.linear)
    for make in inner:
        model.inner = make()
    model.watched.register_forward_hook(lambda *_: None)
    report = normreg.replace(model, fuse=True)
    x = torch.randn(5, 6, device=device, dtype=torch.float64)
    assert_left_as_it_is(model, x, report, reason)


def hooked(register):
    def put(model):
        getattr(model.act, register)(lambda *_: None)

    return put


def overridden(model):
    model.act.forward = lambda x: x * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (hooked("register_forward_hook"), "a hook sits on it: act"),
        (hooked("register_forward_pre_hook"), "a hook sits on it: act"),
        (hooked("register_full_backward_hook"), "a hook sits on it: act"),
        (hooked("register_full_backward_pre_hook"), "a hook sits on it: act"),
        (overridden, "its forward is overridden on the instance: act"),
    ],
)
def test_what_would_vanish(device, change, reason):
    model = Twice(lambda m, x: m.act(m.norm(m.linear(x)))).double().to(device)
    change(model)
    report = normreg.replace(model, fuse=True)
    assert report.fused == ()
    assert [skip.reason for skip in report.not_fused] == [reason]


def by_value(m, x):
    return m.act(m.norm(x)) if x.sum() > 0 else x


def by_type_in_between(m, x):
    y = m.linear(x)
    return m.act(m.norm(y[0] if isinstance(y, tuple) else y))


def counting(m, x):
    m.steps += 1
    return m.act(m.norm(x))


def remembering(m, x):
    m.last = m.norm(x)
    return m.act(m.last)


def in_training_only(m, x):
    return m.act(m.norm(x)) if m.training else m.norm(x)


def by_autocast(m, x):
    return m.norm(x) if torch.is_autocast_enabled("cpu") else m.act(m.norm(x))


def asking(m, x):
    return m.act(m.norm(x.tensors if hasattr(m.linear(x), "tensors") else x))


def telling(m, x):
    y = m.norm(x)
    y.normalized = True
    return m.act(y)


def partly_without_gradient(m, x):
    with torch.no_grad():
        y = m.linear(x)
    return m.act(m.norm(y))


def at_random(m, x):
    return m.act(m.norm(x)) if torch.rand(()) > -1 else x


def at_pythons_random(m, x):
    return m.act(m.norm(x)) if random.random() > -1 else x


def of_numbers(m, x):
    return m.act(m.norm(x)) + torch.ones(6)


FORWARDS_LEFT = {
    "by value": (by_value, "torch.fx cannot trace its forward: symbolically traced variables"),
    "by type": (by_type_in_between, "its forward asks for the type of a value in between"),
    "counting": (counting, "its forward changes attributes of the module"),
    "remembering": (remembering, "its forward changes attributes of the module"),
    "in training only": (in_training_only, "its forward takes another way in evaluation or under autocast"),
    "by autocast": (by_autocast, "its forward takes another way in evaluation or under autocast"),
    "asking": (asking, "its forward asks a value in between for 'tensors', which tensors have not"),
    "telling": (telling, "its forward sets 'normalized' of a value"),
    "no_grad": (partly_without_gradient, "its forward computes a part in another grad or autocast mode"),
    "random": (at_random, "its forward draws random numbers"),
    "Python's random": (at_pythons_random, "its forward draws random numbers"),
    "a constant tensor": (of_numbers, "its forward changes attributes of the module"),
}


@pytest.mark.parametrize(("forward", "reason"), FORWARDS_LEFT.values(), ids=FORWARDS_LEFT)
def test_forwards_left_alone(device, forward, reason):
    model = Twice(forward).to(device)
    attributes, entries = {**vars(model)}, {**model._modules}
    states = torch.get_rng_state(), random.getstate()
    report = normreg.replace(model, fuse=True)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert vars(model) == attributes
    assert model._modules == entries
    assert report.fused == ()
    (skip,) = report.not_fused
    assert (skip.name, skip.kind) == ("(the model itself)", "fusible.Twice")
    assert skip.reason.startswith(reason)
    assert type(model) is Twice
