"""Changes made to a fused model: the next call sees each of them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fusible import (  # noqa: F401
    DroppingFunctions,
    Functional,
    PostNorm,
    PreNorm,
    Twice,
    assert_close,
    convolutional,
    fresh_graphs,
    made,
    patterns,
    step,
)
from torch import nn

import normreg
from normreg.models.fusion import calls

LATER = {
    "hook": lambda m: m.relu.register_forward_hook(lambda module, inputs, output: output * 2),
    "hook on the root": lambda m: m.register_forward_hook(lambda module, inputs, output: output * 2),
    "pre-hook": lambda m: m.bn1.register_forward_pre_hook(lambda module, inputs: inputs[0] * 2),
    "backward hook": lambda m: m.conv2.register_full_backward_hook(lambda module, dx, dy: (dx[0] * 2,)),
    "hook that keeps": lambda m: m.bn1.register_forward_hook(lambda module, i, o: setattr(m, "kept", o)),
    "another activation": lambda m: setattr(m, "relu", nn.Tanh()),
    "a layer restored": lambda m: normreg.restore(m.bn2),
    "a layer assigned": lambda m: setattr(m, "downsample", nn.Conv2d(3, 3, 1).to(m.conv1.weight)),
    "a layer deleted": lambda m: setattr(m, "downsample", None),
    "forward assigned": lambda m: setattr(m.relu, "forward", lambda x: x * 3),
    "forward of the root": lambda m: setattr(m, "forward", lambda x: m.bn1(x) * 3),
    "parameter assigned": lambda m: setattr(m.bn1, "weight", nn.Parameter(m.bn1.weight.detach() * 2)),
    "parameter written": lambda m: m.bn1.weight.data.mul_(2),
    "buffer written": lambda m: m.bn1.running_mean.add_(1),
    "frozen": lambda m: m.bn1.requires_grad_(False),
    "one in evaluation": lambda m: m.bn1.eval(),
    "eps": lambda m: setattr(m.bn1, "eps", 1.0),
    "momentum": lambda m: setattr(m.bn2, "momentum", None),
    "dtype": lambda m: m.float(),
}


@pytest.mark.parametrize("change", LATER.values(), ids=LATER)
def test_changes_afterwards_count(device, change):
    model, twin, x = made("with downsample", device)
    normreg.replace(model, fuse=True)
    for training in (True, False):
        step(model.train(training), x), step(twin.train(training), x)
    for m in (model, twin):
        torch.manual_seed(2)
        m.train()
        change(m)
    x = x.to(model.bn1.running_mean.dtype)
    units = 4096 if x.dtype is torch.float64 else 2**42
    assert_close(step(model, x), step(twin, x), units)
    assert_close(step(model.eval(), x), step(twin.eval(), x), units)


def limited(m, x):
    return m.act(m.norm(x)) * m.limit


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (convolutional, lambda m: m.append(nn.Sigmoid())),
        (convolutional, lambda m: m.pop(2)),
        (convolutional, lambda m: setattr(m[8], "negative_slope", 0.7)),
        (convolutional, lambda m: setattr(m[11], "approximate", "none")),
        (lambda: Twice(limited), lambda m: setattr(m, "limit", 5)),
        (Functional, lambda m: m.norms[1].eval()),
        (PreNorm, lambda m: setattr(m.drop1, "p", 0.5)),
        (DroppingFunctions, lambda m: setattr(m.drop1, "p", 1.0)),
        (PostNorm, lambda m: setattr(m.dropout1, "p", 1.0)),
        (PostNorm, lambda m: m.dropout1.eval()),
    ],
)
def test_settings_and_lists_afterwards(device, make, change):
    model = make().double().to(device)
    twin = copy.deepcopy(model)
    normreg.replace(model, fuse=True), normreg.replace(twin)
    shapes = {nn.Sequential: (2, 3, 4, 4), Functional: (5, 6)}
    x = torch.randn(shapes.get(type(model), (5, 8)), device=device, dtype=torch.float64)
    step(model, x)
    change(model), change(twin)
    model.load_state_dict(twin.state_dict())
    if make is not DroppingFunctions:  # whose masks are others
        assert_close(step(model, x), step(twin, x))
    assert_close(step(model.eval(), x), step(twin.eval(), x))


def test_a_probability_on_a_schedule(device):
    """Dynamo takes a number that changes for a symbol; results stay right, and nothing is drawn wrongly."""
    model = PreNorm().double().to(device)
    twin, x = copy.deepcopy(model), torch.randn(5, 8, device=device, dtype=torch.float64)
    normreg.replace(model, fuse=True), normreg.replace(twin)
    for p in (0.0, 0.1, 0.2, 0.5, 1.0):
        for m in (model, twin):
            for drop in (m.drop1, m.drop2, m.drop3):
                drop.p = p
        assert_close(step(model, x), step(twin, x))


def test_a_slope_on_a_schedule(device):
    model = Twice(lambda m, x: F.leaky_relu(m.norm(x), m.slope)).double().to(device)
    model.slope = 0.1
    twin, x = copy.deepcopy(model), torch.randn(5, 8, device=device, dtype=torch.float64)
    normreg.replace(model, fuse=True), normreg.replace(twin)
    for slope in (0.1, 0.2, 0.3):
        model.slope = twin.slope = slope
        assert_close(step(model, x), step(twin, x))


class Tuned(nn.ReLU):
    def forward(self, x):
        return self.tune(x)

    def tune(self, x):
        return super().forward(x) + 1


def plus(m, x):
    return m.act(m.norm(x)) + 1


@pytest.mark.parametrize("warm", [True, False], ids=["after a call", "before the first"])
@pytest.mark.parametrize(
    ("cls", "name", "method"),
    [
        (Twice, "forward", lambda self, x: self.act(self.norm(x)) * 3),
        (Tuned, "forward", lambda self, x: F.relu(x) * 3),
        (Tuned, "tune", lambda self, x: F.relu(x) * 3),
        (nn.ReLU, "forward", lambda self, x: F.relu(x) * 3),
        (normreg.BatchNorm1d, "forward", lambda self, x: x * 3),
    ],
    ids=["its own", "of a layer inside", "of a method inside", "of torch's", "of ours"],
)
def test_methods_replaced_in_a_class(device, monkeypatch, cls, name, method, warm):
    """Code that a class is given later runs, in every fused model, also where all share their graphs."""
    models = [Twice(plus, Tuned if cls is Tuned else nn.ReLU).to(device).eval() for _ in range(3)]
    x = torch.randn(5, 8, device=device)
    for model in models:
        normreg.replace(model, fuse=True)
        if warm:
            model(x)
    monkeypatch.setattr(cls, name, method)
    for model in models:
        for _ in range(2):
            torch.testing.assert_close(model(x), model._call_impl(x))
    monkeypatch.undo()
    for model in models:
        torch.testing.assert_close(model(x), model._call_impl(x))
        assert patterns(normreg.explain(model, x)) == ["norm -> relu" if cls is Tuned else "norm -> act"]


def test_a_subclass_of_an_activation_is_more_than_it(device):
    model = nn.Sequential(nn.BatchNorm1d(8), Tuned(), nn.BatchNorm1d(8), nn.Tanh()).to(device)
    twin, x = copy.deepcopy(model), torch.randn(5, 8, device=device)
    normreg.replace(model, fuse=True), normreg.replace(twin)
    torch.testing.assert_close(model(x), twin(x))


def test_a_new_output_may_be_overwritten(device):
    """VGG's classifier overwrites the new output of a layer."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(True))
    x = torch.randn(3, 8, device=device)
    report = normreg.replace(model.to(device), fuse=True, example_inputs=x)
    assert patterns(report) == ["0 -> 1 -> 2"]
    outputs = []
    model[0].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model.eval()(x)
    assert outputs[0].min() == 0  # as it was before


def test_hooks_of_all_modules_are_called(device):
    model = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU()).to(device)
    normreg.replace(model, fuse=True)
    x = torch.randn(3, 8, device=device)
    model(x)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        model(x)
    finally:
        handle.remove()
    assert seen == [normreg.BatchNorm1d, nn.ReLU, nn.Sequential]


def test_nothing_of_dynamos_settings_stays(device):
    """Also where fused modules call fused ones, of which graphs are made in between."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.norm, self.act = PostNorm(), nn.BatchNorm1d(8), nn.ReLU()
            self.kept = []

        def forward(self, x):
            y = self.act(self.norm(x))
            self.seen = [*map(float, y[0, :2].tolist())]
            torch._dynamo.graph_break()
            return self.inner(y)

    before = [getattr(torch._dynamo.config, name) for name in calls.SETTINGS.values]
    model, x = Outer().to(device), torch.randn(5, 8, device=device)
    normreg.replace(model.inner, fuse=True)
    report = normreg.replace(model, fuse=True, example_inputs=x)
    assert {"norm -> act", "dropout1 -> + -> norm1"} <= {*patterns(report)}
    model(x)
    handler = torch._dynamo.callback_handler
    assert handler.start_callbacks == handler.end_callbacks == []
    assert [getattr(torch._dynamo.config, name) for name in calls.SETTINGS.values] == before
