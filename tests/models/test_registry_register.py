"""Layers that a caller registers: copies, `restore`, `include`, `explain`, and what is refused."""

import copy
import pickle

import pytest
import torch
from foreign_layers import LlamaRMSNorm, root_mean_square
from support.duplicates import saved_and_loaded
from torch import nn

import normreg
from normreg.models import registry


class ScaleNorm(nn.Module):
    """A user's own layer."""

    def __init__(self, size=8):
        super().__init__()
        self.scale = nn.Parameter(torch.full((size,), 2.0))

    def forward(self, x):
        return x * root_mean_square(x, 1e-5) * self.scale


class Subclass(ScaleNorm):
    pass


@pytest.fixture
def scale_norm(monkeypatch):
    monkeypatch.setattr(registry, "FORWARDS", dict(registry.FORWARDS))

    @normreg.register_layer(ScaleNorm)
    def forward(module, x):
        return normreg.functional.rms_norm(x, module.scale.shape, module.scale, 1e-5)

    return forward


@pytest.mark.parametrize("how", [copy.deepcopy, pickle, torch.save], ids=["deepcopy", "pickle", "torch.save"])
def test_copies(device, launches, scale_norm, how):
    model = nn.Sequential(ScaleNorm(), nn.LayerNorm(8)).to(device)
    model[0].hook_count = 3
    normreg.replace(model)
    if how is pickle:
        twins = [
            pickle.loads(pickle.dumps(model, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ]
    elif how is torch.save:
        twins = [saved_and_loaded(model)]
    else:
        twins = [how(model)]
    x = torch.randn(2, 8, device=device)
    expected = model(x)
    for twin in twins:
        assert type(twin[0]) is type(model[0])
        assert twin[0].hook_count == 3
        launches.clear()
        assert torch.equal(twin(x), expected)
        assert len(launches) == 2


def test_a_list_of_subclasses_hears_of_none(monkeypatch):
    known = []

    class Listed(ScaleNorm):
        def __init_subclass__(cls, **options):
            known.append(cls)

    monkeypatch.setattr(registry, "FORWARDS", dict(registry.FORWARDS))
    normreg.register_layer(Listed)(lambda module, x: x)
    model = nn.Sequential(Listed())
    assert len(normreg.replace(model).changed) == 1
    assert known == []


def test_a_copy_where_the_class_is_not_registered(scale_norm):
    model = ScaleNorm()
    normreg.replace(model)
    pickled = pickle.dumps(model)
    del registry.FORWARDS[registry.path_of(ScaleNorm)]
    assert type(pickle.loads(pickled)) is ScaleNorm


def test_exact_classes_only(device, scale_norm):
    model = nn.Sequential(ScaleNorm(), Subclass())
    report = normreg.replace(model)
    assert [change.name for change in report.changed] == ["0"]
    assert type(model[1]) is Subclass


def test_include_and_exclude_know_them(scale_norm):
    model = nn.Sequential(ScaleNorm(), nn.LayerNorm(8))
    assert [change.name for change in normreg.replace(model, include=ScaleNorm).changed] == ["0"]
    assert [change.name for change in normreg.replace(model, exclude=ScaleNorm).changed] == ["1"]


def test_explain_names_them(device, scale_norm):
    model = nn.Sequential(ScaleNorm(), nn.Identity()).to(device)
    x = torch.randn(2, 8, device=device)
    assert [skip.name for skip in normreg.explain(model, x).not_replaced] == ["0"]
    normreg.replace(model)
    explanation = normreg.explain(model, x)
    assert [(call.name, call.path) for call in explanation] == [("0", "kernel")]
    assert explanation.not_called == ()


def test_as_before_is_the_original(device, scale_norm):
    layer = ScaleNorm().to(device)
    x = torch.randn(2, 8, device=device)
    expected = layer(x)
    normreg.replace(layer)
    assert torch.equal(normreg.as_before(layer, x), expected)


def test_register_by_import_path(monkeypatch):
    monkeypatch.setattr(registry, "FORWARDS", {})
    normreg.register_layer("somewhere.norms.Norm", ScaleNorm)(len)
    assert set(registry.FORWARDS) == {"somewhere.norms.Norm", f"{__name__}.ScaleNorm"}


def test_restored_whatever_happened_since(device, monkeypatch):
    """The registered forward may come from another module than the class, and other tools may set it."""
    monkeypatch.setattr(registry, "FORWARDS", dict(registry.FORWARDS))

    def theirs(module, x):
        return normreg.functional.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)

    theirs.__module__ = "somebodys_script"
    normreg.register_layer("transformers.models.llama.modeling_llama.LlamaRMSNorm")(theirs)
    model = nn.Sequential(LlamaRMSNorm(8), nn.LayerNorm(8)).to(device)
    was = [type(module) for module in model]
    normreg.replace(model)
    assert type(model[0]).forward is theirs
    model[1].qconfig = torch.ao.quantization.default_qconfig
    report = normreg.restore(model)
    assert [type(module) for module in model] == was
    assert report.skipped == ()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((), "at least one class"),
        ((3,), "got 3"),
        (("Norm",), "got 'Norm'"),
        ((ScaleNorm(),), "got ScaleNorm()"),
    ],
    ids=str,
)
def test_what_cannot_be_registered(classes, message):
    before = dict(registry.FORWARDS)
    with pytest.raises(TypeError) as caught:
        normreg.register_layer(*classes)
    assert message in str(caught.value)
    with pytest.raises(TypeError, match="expected a function"):
        normreg.register_layer(ScaleNorm)(None)
    assert before == registry.FORWARDS
