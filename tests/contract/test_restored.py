"""`restore` undoes `replace` alone, and `restored` shows torch.nn's classes for a while."""

import copy
import pickle
import warnings

import pytest
import torch
from nested import NESTED, contents, nested, types
from operations import every_kind, torch_layer
from torch import nn

import normreg
from normreg.models import registry


def with_layers_of_both(device):
    """A model with a layer of torch's and one of normreg's of each kind."""
    pairs = [(torch_layer(kind, device)[0], torch_layer(kind, device)[0]) for kind in NESTED.values()]
    for _, made in pairs:
        normreg.replace(made)
        vars(made).pop("_replaced_by_normreg")  # as if it was made so
    return nn.ModuleList(nn.ModuleList(pair) for pair in pairs)


def test_what_was_made_as_normregs_stays(device):
    model = with_layers_of_both(device)
    was, objects = types(model), list(contents(model))
    report = normreg.replace(model)
    assert (len(report.changed), report.already) == (len(NESTED), len(NESTED))
    assert len(normreg.restore(model).changed) == len(NESTED)
    assert types(model) == was
    after = list(contents(model))
    assert [where for where, _ in after] == [where for where, _ in objects]
    assert all(a is b for (_, a), (_, b) in zip(after, objects, strict=True))


def test_a_layer_of_normregs_is_left_alone_by_itself():
    layer = normreg.LayerNorm(4)
    assert normreg.restore(layer).changed == ()
    assert type(layer) is normreg.LayerNorm


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["deepcopy", "copy", "pickle"],
)
def test_copies_know_what_was_replaced(duplicate):
    model = nn.Sequential(nn.LayerNorm(4), normreg.LayerNorm(4))
    normreg.replace(model)
    assert [change.name for change in normreg.restore(duplicate(model)).changed] == ["0"]


@pytest.mark.parametrize(
    ("options", "restored"),
    [
        (dict(include="stem.*"), {"stem.1", "stem.2"}),
        (dict(include=normreg.LayerNorm), {"stem.1"}),
        (dict(include=nn.LayerNorm, exclude="stem.2"), {"stem.1"}),
        (dict(exclude=["stem.*", lambda name, module: name.startswith("groups")]), None),
        (dict(include=lambda name, module: False), set()),
    ],
    ids=["a pattern", "a class", "both", "several", "nothing"],
)
def test_include_and_exclude(device, options, restored):
    if restored is None:
        restored = {name for name in NESTED if not name.startswith(("stem", "groups"))}
    model = nested(device)
    was = types(model)
    normreg.replace(model)
    now = types(model)
    report = normreg.restore(model, **options)
    assert {change.name for change in report.changed} == restored
    assert types(model) == {name: was[name] if name in restored else cls for name, cls in now.items()}
    assert {skip.name for skip in report.skipped} == set(NESTED) - restored
    normreg.restore(model)
    assert types(model) == was


@pytest.mark.parametrize("selected", ["0", nn.Linear, "LayerNorm", 3], ids=str)
def test_what_restore_cannot_choose(selected):
    """Layers that were not replaced, and names of classes, choose nothing."""
    model = nn.Sequential(normreg.LayerNorm(4), nn.LayerNorm(4), nn.Linear(4, 4))
    normreg.replace(model)
    was = types(model)
    with pytest.raises((ValueError, TypeError)) as caught:
        normreg.restore(model, include=selected)
    assert types(model) == was
    assert selected == 3 or "some layer that replace has changed" in str(caught.value)


def test_fusions_stay_beside_a_selection(device):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.LayerNorm(4)).to(device)
    normreg.replace(model, fuse=True)
    call = model._compiled_call_impl
    assert normreg.restore(model, include="2").notes == ()
    assert model._compiled_call_impl is call
    assert normreg.restore(model).notes == ("calls are not fused any more: (the model itself)",)
    assert model._compiled_call_impl is None


def test_restored_for_a_while(device):
    """Made as normreg's or replaced: within it all are torch's, and afterwards what they were."""
    model = with_layers_of_both(device)
    normreg.replace(model)
    was, objects = types(model), list(contents(model))
    with normreg.restored(model) as same:
        assert same is model
        assert {name: cls.__module__.split(".")[0] for name, cls in types(model).items()} == dict.fromkeys(
            was, "torch"
        )
        assert not any("normreg" in where for where, _ in contents(model))
    assert types(model) == was
    assert [a for a, _ in contents(model)] == [a for a, _ in objects]
    assert len(normreg.restore(model).changed) == len(NESTED)


def test_restored_is_undone_on_an_error_and_can_be_nested():
    model = nn.Sequential(nn.LayerNorm(4))
    normreg.replace(model)

    def fail_within():
        with normreg.restored(model), normreg.restored(model):
            assert type(model[0]) is nn.LayerNorm
            raise KeyError

    with pytest.raises(KeyError):
        fail_within()
    assert type(model[0]) is normreg.LayerNorm
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"), normreg.restored([model]):
        pass


def test_what_a_tool_does_meanwhile_stays():
    """It may take layers out of the model, give them other classes, and add layers."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.LayerNorm(4), nn.Dropout())
    normreg.replace(model)
    first, second, third = model
    derived = type("FSDPLayerNorm", (nn.LayerNorm,), {})
    with normreg.restored(model):
        model[0] = nn.Identity()
        second.__class__ = derived
    assert [type(first), type(second), type(third)] == [normreg.BatchNorm2d, derived, normreg.Dropout]
    assert type(model[0]) is nn.Identity


def test_calls_are_not_fused_meanwhile(device):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).to(device).eval()
    x = torch.randn(2, 3, 4, 4, device=device)
    normreg.replace(model, fuse=True)
    expected, call = model(x), model._compiled_call_impl
    with normreg.restored(model):
        assert model._compiled_call_impl is None
        torch.testing.assert_close(model(x), expected)
    assert model._compiled_call_impl is call


def test_layers_of_other_libraries(monkeypatch):
    class ScaleNorm(nn.Module):
        def forward(self, x):
            return x

    monkeypatch.setattr(registry, "FORWARDS", dict(registry.FORWARDS))
    normreg.register_layer(ScaleNorm)(lambda module, x: x)
    model = nn.Sequential(ScaleNorm())
    normreg.replace(model)
    with normreg.restored(model):
        assert type(model[0]) is ScaleNorm
    assert issubclass(type(model[0]), registry.Foreign)


def test_layers_without_a_class_in_torch_are_named():
    model = nn.Sequential(normreg.BatchNormAct2d(3), normreg.BatchNorm2d(3), normreg.DropPath())
    with (
        pytest.warns(UserWarning, match=r"2 layers that stay normreg's: 0, 2 \(normreg.BatchNormAct2d, "),
        normreg.restored(model),
    ):
        assert type(model[1]) is nn.BatchNorm2d
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with normreg.restored(nn.Sequential(normreg.LayerNorm(3))):
            pass


@every_kind
def test_a_copy_made_meanwhile_is_torchs(device, kind):
    module, _ = torch_layer(kind, device)
    normreg.replace(module)
    with normreg.restored(module):
        twin = copy.deepcopy(module)
    assert type(twin) is getattr(nn, kind)
    assert normreg.restore(twin).changed == ()
    assert len(normreg.replace(twin).changed) == 1
