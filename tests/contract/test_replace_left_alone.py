"""Modules that `replace` leaves alone, and the reason that its report gives."""

import functools

import pytest
import torch
from nested import PlainNorm, TunedLayerNorm, contents, outcome, with_forward_of_its_own
from operations import torch_layer
from torch import nn
from torch.nn.utils import parametrize

import normreg
from normreg.models.report import Skip


class Halve(nn.Module):
    def forward(self, weight):
        return weight / 2


def parametrized():
    return parametrize.register_parametrization(nn.LayerNorm(6), "weight", Halve())


A_SUBCLASS = "a subclass of torch.nn.{} may compute something else"


def prepared():
    layer = nn.LayerNorm(6)
    layer.qconfig = torch.ao.quantization.default_qconfig
    return layer


def scripted():
    return torch.jit.script(nn.LayerNorm(6))


class LigerRMSNorm(nn.Module):
    """A norm by its name, of a class that normreg does not know."""

    def forward(self, x):
        return x / 2


class NormedHead(nn.Sequential):
    """A container with a norm in its name."""


LEFT_ALONE = {
    "prepared for quantisation": (
        prepared,
        "torch.nn.LayerNorm",
        "it is prepared for quantisation, which knows torch's classes only",
    ),
    "unknown": (
        LigerRMSNorm,
        "test_replace_left_alone.LigerRMSNorm",
        "an unknown class: see normreg.register_layer",
    ),
    "scripted": (scripted, "torch.jit.RecursiveScriptModule", "compiled by torch.jit: replace before"),
    "subclass": (
        lambda: TunedLayerNorm(6),
        "nested.TunedLayerNorm",
        A_SUBCLASS.format("LayerNorm"),
    ),
    "forward of its own": (
        with_forward_of_its_own,
        "torch.nn.LayerNorm",
        "its forward is overridden on the instance",
    ),
    "parametrized": (
        parametrized,
        "ParametrizedLayerNorm, derived from torch.nn.LayerNorm",
        A_SUBCLASS.format("LayerNorm"),
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.")
@pytest.mark.parametrize(("make", "kind", "reason"), LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_left_alone_and_named(device, launches, make, kind, reason):
    model = nn.Sequential(make()).to(device)
    cls, objects = type(model[0]), list(contents(model))
    twin = nn.Sequential(make()).to(device)
    report = normreg.replace(model)
    assert outcome(report) == ((), (Skip("0", kind, reason),))
    assert type(model[0]) is cls
    assert all(a is b for (_, a), (_, b) in zip(contents(model), objects, strict=True))
    x = torch.randn(4, 6, device=device)
    assert torch.equal(model(x), twin(x))
    assert launches == []


def test_a_forward_that_a_tool_replaced_in_the_class(device, monkeypatch):
    model = nn.Sequential(nn.LayerNorm(6), nn.RMSNorm(6)).to(device)
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, x: x * 3)
    report = normreg.replace(model)
    assert [change.name for change in report.changed] == ["1"]
    assert report.skipped == (
        Skip("0", "torch.nn.LayerNorm", f"LayerNorm.forward was replaced by {__name__}"),
    )
    assert torch.equal(model[0](torch.ones(6, device=device)), torch.full((6,), 3.0, device=device))


def tripled(function):
    @functools.wraps(function)
    def wrapper(*arguments, **options):
        return function(*arguments, **options) * 3

    return wrapper


@pytest.mark.parametrize(
    ("owner", "name", "told"),
    [
        (nn.GroupNorm, "forward", "GroupNorm.forward was replaced by {}"),
        (nn.functional, "group_norm", "F.group_norm, which it calls, was replaced by {}"),
    ],
    ids=["method", "function"],
)
def test_patches_that_functools_wraps_hides(device, launches, monkeypatch, owner, name, told):
    """The wrapper says that it is torch's: of a method of the class, and of the function that this calls."""
    model = nn.Sequential(nn.GroupNorm(1, 3), nn.LayerNorm(4)).to(device)
    monkeypatch.setattr(owner, name, tripled(getattr(owner, name)))
    report = normreg.replace(model)
    assert [change.name for change in report.changed] == ["1"]
    assert report.skipped == (Skip("0", "torch.nn.GroupNorm", told.format(__name__)),)
    x = torch.randn(2, 3, 4, device=device)
    assert torch.equal(
        model[0](x), torch.native_group_norm(x, model[0].weight, model[0].bias, 2, 3, 4, 1, 1e-5)[0] * 3
    )
    assert launches == []


def test_a_method_that_the_forward_calls(monkeypatch):
    monkeypatch.setattr(nn.BatchNorm2d, "_check_input_dim", tripled(nn.BatchNorm2d._check_input_dim))
    report = normreg.replace(nn.BatchNorm2d(3))
    assert [skip.reason for skip in report.skipped] == [
        f"BatchNorm2d._check_input_dim, which it calls, was replaced by {__name__}"
    ]
    assert normreg.replace(nn.BatchNorm1d(3)).skipped == ()


def test_containers_are_not_named():
    assert normreg.replace(NormedHead(nn.Linear(2, 2))).skipped == ()


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("kind", ["BatchNorm2d", "InstanceNorm2d"])
def test_a_lazy_layer_is_replaced_once_it_saw_its_input(device, kind):
    module = getattr(nn, f"Lazy{kind}")().to(device)
    report = normreg.replace(module)
    assert report.changed == ()
    assert [skip.kind for skip in report.skipped] == [f"torch.nn.Lazy{kind}"]
    assert type(module) is getattr(nn, f"Lazy{kind}")
    module(torch.randn(2, 3, 4, 4, device=device))
    assert len(normreg.replace(module).changed) == 1
    assert type(module) is getattr(normreg, kind)


class BlockDropout(nn.modules.dropout._DropoutNd):
    pass


@pytest.mark.parametrize(
    "relative",
    [
        PlainNorm(4),
        nn.LocalResponseNorm(2),
        nn.CrossMapLRN2d(2),
        BlockDropout(),
        normreg.DropPath(),
        nn.Identity(),
        nn.Linear(4, 4),
        nn.Module(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_relatives_are_left_alone(relative):
    model = nn.Sequential(relative, nn.LayerNorm(4))
    cls, objects = type(relative), dict(vars(relative))
    report = normreg.replace(model)
    assert [change.name for change in report.changed] == ["1"]
    assert type(relative) is cls
    named = cls.__name__.startswith(("Plain", "Block", "LocalResponse"))
    assert [skip.name for skip in report.skipped] == ["0"] * named
    assert all(skip.reason == "normreg has no counterpart" for skip in report.skipped)
    assert all(vars(relative)[name] is value for name, value in objects.items())


def test_a_parametrization_of_a_replaced_layer(device, launches):
    module, x = torch_layer("LayerNorm", device)
    expected = normreg.functional.layer_norm(x, (6,), module.weight / 2, module.bias)
    normreg.replace(module)
    launches.clear()
    parametrize.register_parametrization(module, "weight", Halve())
    assert torch.equal(module(x), expected)
    assert launches == ["layer_norm_forward_kernel"]
    parametrize.remove_parametrizations(module, "weight")
    assert type(module) is normreg.LayerNorm
