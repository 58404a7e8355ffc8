"""Arguments of fused modules, and changes made to them after `replace(fuse=True)`."""

import copy

import pytest
import torch
from fusible import (
    Functional,
    PostNorm,
    PreNorm,
    Twice,
    assert_close,
    convolutional,
    made,
    step,
)
from torch import nn

import normreg
from normreg.models.fusion import blocks


class Flexible(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.act, self.linear = nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6)

    def forward(self, x, scale=2.0, *more, shift=None, **options):
        y = self.act(self.norm(x)) * scale
        for value in (*more, *options.values()):
            y = y + value
        return self.linear(y), shift


def test_arguments_that_are_passed_on(device, launches):
    model = Flexible().double().to(device)
    twin = copy.deepcopy(model)
    assert [fusion.what for fusion in normreg.replace(model, fuse=True).fused] == ["norm -> act"]
    x = torch.randn(5, 6, device=device, dtype=torch.float64)
    for fused, inputs, options in (
        (True, (x,), {}),
        (True, (x, 3.0), {}),
        (True, (x, x), dict(shift=x)),
        (True, (), dict(x=x, scale=4)),
        (False, (x, 3.0, x), {}),
        (False, (x,), dict(other=x)),
    ):
        y, shift = model(*inputs, **options)
        expected, expected_shift = twin(*inputs, **options)
        assert_close([y], [expected])
        assert shift is expected_shift
        calls = [call.layer for call in normreg.explain(model, *inputs, **options)]
        assert calls == ["normreg.functional.batch_norm_act" if fused else "normreg.BatchNorm1d"]


class ByOption(Twice):
    def forward(self, x, flag=None):
        return self.act(self.norm(x)) if flag is None else self.norm(x)


class WithOption(Twice):
    def forward(self, x, scale=1.0):
        return self.act(self.norm(x)) * (scale + 1)


@pytest.mark.parametrize("cls", [ByOption, WithOption])
def test_arguments_that_decide(device, cls):
    model = cls(None).double().to(device)
    twin = copy.deepcopy(model)
    assert [fusion.what for fusion in normreg.replace(model, fuse=True).fused] == ["norm -> act"]
    assert not type(model).rewritten.passed_on
    x = torch.randn(5, 6, device=device, dtype=torch.float64)
    for inputs in ((x,), (x, 5.0)):
        assert_close([model(*inputs)], [twin(*inputs)])


class Tuned(nn.ReLU):
    def forward(self, x):
        return super().forward(x) + 1


def test_an_unknown_activation_is_not_lost(device):
    model = nn.Sequential(nn.BatchNorm1d(6), Tuned(), nn.BatchNorm1d(6), nn.Tanh())
    assert normreg.replace(model, fuse=True).fused == ()
    assert type(model) is nn.Sequential


def test_types_of_inputs(device):
    """A call whose inputs are not tensors is not fused."""

    def forward(m, x):
        return m.act(m.norm(m.linear(x if isinstance(x, torch.Tensor) else torch.cat(x))))

    model = Twice(forward).double().to(device)
    twin = copy.deepcopy(model)
    assert len(normreg.replace(model, fuse=True).fused) == 1
    x = torch.randn(5, 6, device=device, dtype=torch.float64)
    assert_close([model(x), model([x, x])], [twin(x), twin([x, x])])


LATER = {
    "hook": lambda m: m.relu.register_forward_hook(lambda module, inputs, output: output * 2),
    "pre-hook": lambda m: m.bn1.register_forward_pre_hook(lambda module, inputs: inputs[0] * 2),
    "another activation": lambda m: setattr(m, "relu", nn.Tanh()),
    "a layer restored": lambda m: normreg.restore(m.bn2),
    "a layer assigned": lambda m: setattr(m, "downsample", nn.Conv2d(3, 3, 1).to(m.conv1.weight)),
    "forward assigned": lambda m: setattr(m.relu, "forward", lambda x: x * 3),
}


@pytest.mark.parametrize("change", LATER.values(), ids=LATER)
def test_changes_afterwards_count(device, change):
    model, twin, x, _ = made("BasicBlock", device)
    normreg.replace(model, fuse=True)
    step(model, x), step(twin, x)
    for m in (model, twin):
        torch.manual_seed(2)
        change(m)
    assert_close(step(model, x), step(twin, x))
    assert_close(step(model.eval(), x), step(twin.eval(), x))


def limited(m, x):
    return m.act(m.norm(x)) * m.limit


def test_settings_and_lists_afterwards(device):
    for make, change in (
        (convolutional, lambda m: m.append(nn.Sigmoid())),
        (convolutional, lambda m: setattr(m[8], "negative_slope", 0.7)),
        (convolutional, lambda m: setattr(m[11], "approximate", "none")),
        (lambda: Twice(limited), lambda m: setattr(m, "limit", 5)),
        (Functional, lambda m: m.norms[1].eval()),
        (PreNorm, lambda m: setattr(m, "p", 1.0)),
        (PostNorm, lambda m: setattr(m.dropout1, "p", 1.0)),
    ):
        model = make().double().to(device)
        twin = copy.deepcopy(model)
        normreg.replace(model, fuse=True)
        assert isinstance(model, blocks.Fused)
        shape = (2, 3, 4, 4) if isinstance(model, nn.Sequential) else (5, 6)
        x = torch.randn(shape, device=device, dtype=torch.float64)
        change(model), change(twin)
        assert_close(step(model, x), step(twin, x))


def test_a_new_output_may_be_overwritten(device):
    """VGG's classifier overwrites the new output of a layer."""
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(True), nn.Dropout(), nn.Linear(6, 6), nn.ReLU(True))
    assert [fusion.what for fusion in normreg.replace(model.to(device), fuse=True).fused] == ["1 -> 2"]
    outputs = []
    model[0].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model.eval()(torch.randn(3, 6, device=device))
    assert outputs[0].min() == 0  # as it was before


def test_hooks_of_all_modules_are_called(device):
    model = nn.Sequential(nn.BatchNorm1d(6), nn.ReLU()).to(device)
    normreg.replace(model, fuse=True)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        model(torch.randn(3, 6, device=device))
    finally:
        handle.remove()
    assert seen == [normreg.BatchNorm1d, nn.ReLU, type(model)]
