"""What `explain` and `diagnose` listen to: every call, beside others that listen, and as if nobody did."""

import contextlib
import threading

import pytest
import torch
from explained import rows
from support.elsewhere import TimmBatchNormAct2d
from torch import nn
from torch.nn.modules import module as calls

import normreg
from normreg.models.hooks import OBSERVERS, has_global_hooks

HOOKS = [name for name in vars(calls) if name.startswith("_global_")]


def listening():
    return {name: dict(getattr(calls, name)) for name in HOOKS if name != "_global_is_full_backward_hook"}


def names(report):
    return [layer.name for layer in report]


@pytest.fixture(params=["explain", "diagnose"])
def inspect(request):
    """`explain` or `diagnose`, and the names of what it finds."""
    return lambda *given, **named: names(getattr(normreg, request.param)(*given, **named))


class Calls(nn.Module):
    """A model that calls its norm in a function which a test gives it."""

    def __init__(self, forward):
        super().__init__()
        self.linear, self.norm, self.other = nn.Linear(4, 4), normreg.LayerNorm(4), normreg.LayerNorm(4)
        self.run = forward

    def forward(self, x):
        return self.run(self, self.linear(x))


def test_module_call_is_nobodys(device, inspect):
    """Whoever puts another Module.__call__ there before, or meanwhile, keeps it and hears all calls."""
    real, heard = nn.Module.__call__, []

    def heard_by(tool, call):
        def hears(module, *inputs, **options):
            heard.append((tool, type(module).__name__))
            return call(module, *inputs, **options)

        return hears

    def forward(model, x):
        nn.Module.__call__ = heard_by("meanwhile", nn.Module.__call__)
        return model.norm(x)

    nn.Module.__call__ = before = heard_by("before", real)
    try:
        assert "norm" in inspect(Calls(forward).to(device), torch.randn(3, 4, device=device))
        assert nn.Module.__call__ is not before
        del heard[:]
        nn.Linear(4, 4, device=device)(torch.randn(3, 4, device=device))
    finally:
        nn.Module.__call__ = real
    assert heard == [("meanwhile", "Linear"), ("before", "Linear")]


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_hooks_of_all_modules_stay_and_run(device, inspect, raises):
    def forward(model, x):
        if raises:
            raise RuntimeError("on purpose")
        return model.norm(x)

    model, heard = Calls(forward).to(device), []
    ours = [
        calls.register_module_forward_pre_hook(lambda module, inputs: heard.append("before")),
        calls.register_module_forward_hook(lambda module, inputs, y: heard.append("after") or 2 * y),
    ]
    try:
        before = listening()
        with pytest.raises(RuntimeError, match="on purpose") if raises else contextlib.nullcontext():
            assert "norm" in inspect(model, torch.randn(3, 4, device=device))
        assert listening() == before
    finally:
        for handle in ours:
            handle.remove()
    assert heard == ["before"] * 2 + ["after"] if raises else ["before", *["before", "after"] * 2, "after"]
    assert OBSERVERS == []
    assert not has_global_hooks()


def test_what_hooks_of_all_modules_return_is_measured(device):
    """Those that were there before, as the next layer sees it."""
    model, x = (
        nn.Sequential(nn.Linear(4, 4), normreg.LayerNorm(4)).to(device),
        torch.randn(3, 4, device=device),
    )
    plain = normreg.diagnose(model, x).layers[0].activation.norm
    handle = calls.register_module_forward_hook(lambda module, inputs, y: 3 * y)
    try:
        assert normreg.diagnose(model, x).layers[0].activation.norm == pytest.approx(3 * plain)
    finally:
        handle.remove()


def test_a_fused_call_is_explained_as_it_is(device):
    """timm's layer calls one kernel, unless somebody listens to its activation."""
    model, x = TimmBatchNormAct2d(4).to(device), torch.randn(2, 4, 3, 3, device=device)
    normreg.replace(model)
    functions = lambda: [call.why or call.path for call in normreg.explain(model, x)]  # noqa: E731
    assert functions() == ["kernel"]
    assert names(normreg.diagnose(model, x)) == ["(the model itself)"]
    handle = calls.register_module_forward_hook(lambda *_: None)
    try:
        assert has_global_hooks()
        assert names(normreg.diagnose(model, x)) == ["drop", "act"]
    finally:
        handle.remove()


@pytest.mark.parametrize("where", ["forward", "hook", "pre-hook", "every hook"])
def test_an_observed_model_may_observe(device, inspect, where):
    found, x = [], torch.randn(3, 4, device=device)

    def inner(*_):
        if not found:
            found.append(None)
            found[0] = inspect(
                nn.Sequential(normreg.LayerNorm(4)).to(device), torch.ones(3, 4, device=device)
            )

    def forward(model, x):
        if where == "forward":
            inner()
        return model.other(model.norm(x))

    model = Calls(forward).to(device)
    handle = {
        "hook": model.norm.register_forward_hook,
        "pre-hook": model.norm.register_forward_pre_hook,
        "every hook": calls.register_module_forward_hook,
    }.get(where, lambda hook: contextlib.nullcontext())(inner)
    with handle:
        seen = inspect(model, x)
    assert found == [["0"]]
    assert ("norm" in seen, "other" in seen) in ((True, True), (where != "pre-hook", True))  # run inside norm
    assert not has_global_hooks()


def test_layers_that_raise_are_not_around_those_after_them(device):
    """Calls are attributed rightly where a model goes on after an error in one of its layers."""

    def forward(model, x):
        for shape in ((3, 4), (4, 3)):
            with contextlib.suppress(RuntimeError):
                x = model.norm(x.reshape(shape)).reshape(3, 4)
        return normreg.functional.layer_norm(x, (4,))

    report = normreg.explain(Calls(forward).to(device), torch.randn(3, 4, device=device))
    assert rows(report)[::2] == [
        ("norm", "normreg.LayerNorm", "kernel"),
        ("(the model itself)", "normreg.functional.layer_norm", "kernel"),
    ]


def test_calls_of_other_threads_are_neither_heard_nor_changed(device, inspect):
    """Also where they begin before the observed run, or end after it."""
    begun, explained = threading.Event(), threading.Event()

    def waiting(model, x):
        begun.set()
        assert explained.wait(60)
        return model.norm(x)

    results = []
    other, x = Calls(waiting).to(device), torch.randn(3, 4, device=device)
    thread = threading.Thread(target=lambda: results.append(other(x)))
    thread.start()
    assert begun.wait(60)
    seen = inspect(Calls(lambda model, x: model.norm(x)).to(device), x)
    explained.set()
    thread.join()
    assert seen in (["norm"], ["linear", "norm"])
    assert torch.equal(results[0], other.norm(other.linear(x)))


class CallOfItsOwn(nn.Linear):
    """A module that calls its forward itself, or the usual way with one input more."""

    usual = True

    def __call__(self, x):
        return super().__call__(x) if self.usual else self.forward(x)


def test_modules_with_a_call_of_their_own(device):
    model, x = (
        nn.Sequential(CallOfItsOwn(4, 4), normreg.LayerNorm(4)).to(device),
        torch.randn(3, 4, device=device),
    )
    assert names(normreg.diagnose(model, x)) == ["0", "1"]
    model[0].usual = False
    assert names(normreg.diagnose(model, x)) == ["1"]
    assert names(normreg.explain(model, x)) == ["1"]


def test_torchs_fast_path_is_not_left(device):
    """It is left where a child has a hook of its own, so that another call would be explained."""
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).to(device).eval()
    normreg.replace(model)
    with torch.no_grad():
        report = normreg.explain(model, torch.randn(2, 3, 8, device=device))
    assert names(report) == []
    assert {skip.name for skip in report.not_called} == {"norm1", "norm2", "dropout", "dropout1", "dropout2"}


def test_what_is_given_by_name_is_an_input(device):
    model = Calls(lambda model, x: model.norm(input=nn.functional.relu(x))).to(device)
    model.norm = normreg.Dropout(0.5).eval()
    (call,) = normreg.explain(model, torch.randn(3, 4, device=device))
    assert (call.shape, call.path, call.why) == ((3, 4), "nothing", "it returns its input")
