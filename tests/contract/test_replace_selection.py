"""`include`, `exclude` and `dry_run` of `replace`, and what its report says."""

import re
from collections import OrderedDict

import pytest
from nested import NESTED, TunedLayerNorm, contents, nested, types, with_forward_of_its_own
from torch import nn

import normreg

GOLDEN = """\
2 layers changed, with 5.71 % of 140 parameters
name        was                   is
----------  --------------------  -------------------
body.norm   torch.nn.BatchNorm2d  normreg.BatchNorm2d
body.drop1  torch.nn.Dropout      normreg.Dropout

2 layers left alone
name  class                  why
----  ---------------------  -----------------------------------------------------------
tail  nested.TunedLayerNorm  a subclass of torch.nn.LayerNorm may compute something else
own   torch.nn.LayerNorm     its forward is overridden on the instance

tools that look at exact classes, as for differential privacy, conv-BN folding and quantisation,
overlook these layers: call them in `with normreg.restored(model):`"""


def test_printed_report(capsys):
    body = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), drop1=nn.Dropout()))
    model = nn.Sequential(OrderedDict(body=body, tail=TunedLayerNorm(4), own=with_forward_of_its_own()))
    print(normreg.replace(model))
    assert capsys.readouterr().out == GOLDEN + "\n"
    print(normreg.replace(nn.Linear(2, 2)))
    assert capsys.readouterr().out == "0 layers changed\n"


SELECTIONS = {
    "a pattern": ("stem.*", {"stem.1", "stem.2"}),
    "a pattern with one character": ("groups.?", {f"groups.{i}" for i in range(5)}),
    "a class": (nn.LayerNorm, {"stem.1"}),
    "a base class": (nn.modules.batchnorm._BatchNorm, {"blocks.0", "heads.a", "heads.b.0", "groups.4"}),
    "a function": (lambda name, module: name.endswith(".a"), {"heads.a"}),
    "a function that never agrees": (lambda name, module: False, set()),
    "several": (
        ["stem.1", nn.RMSNorm, lambda name, module: name == "heads.a"],
        {"stem.1", "stem.2", "heads.a"},
    ),
}


@pytest.mark.parametrize(("selected", "names"), SELECTIONS.values(), ids=SELECTIONS)
def test_include_and_exclude(device, selected, names):
    for arguments, expected in (
        (dict(include=selected), names),
        (dict(exclude=selected), set(NESTED) - names),
        (dict(include=selected, exclude="stem.2"), names - {"stem.2"}),
    ):
        model = nested(device)
        others = {name: type(module) for name, module in model.named_modules() if name not in expected}
        report = normreg.replace(model, **arguments)
        assert {change.name for change in report.changed} == expected
        assert all(type(model.get_submodule(name)) is getattr(normreg, NESTED[name]) for name in expected)
        assert all(type(model.get_submodule(name)) is cls for name, cls in others.items())
        reasons = {skip.name: skip.reason for skip in report.skipped}
        assert {reasons[name] for name in set(NESTED) - expected} <= {"excluded", "not included"}


def test_a_selection_adds_to_an_earlier_one(device):
    model = nested(device)
    normreg.replace(model, include="stem.*")
    report = normreg.replace(model, include=["stem.1", "heads.*"])
    assert [change.name for change in report.changed] == ["heads.a", "heads.b.0"]
    assert type(model.stem[2]) is normreg.RMSNorm
    assert "stem.2" not in {skip.name for skip in report.skipped}


def test_a_dry_run_changes_nothing_and_says_what_would_be(device):
    model = nested(device)
    was, objects = types(model), list(contents(model))
    would = normreg.replace(model, include="stem.*", dry_run=True)
    assert types(model) == was
    assert all(a is b for (_, a), (_, b) in zip(contents(model), objects, strict=True))
    lines = str(would).splitlines()
    assert lines[0].startswith("2 layers would be changed, with ")
    assert lines[1].split() == ["name", "was", "would", "be"]
    did = normreg.replace(model, include="stem.*")
    assert (would.changed, would.skipped) == (did.changed, did.skipped)


def test_the_share_of_parameters():
    """Shared parameters count once, those on the meta device count, lazy ones do not."""
    norm = nn.LayerNorm(4, device="meta")
    model = nn.Sequential(norm, norm, nn.LazyLinear(3), nn.Linear(4, 4, bias=False), nn.LayerNorm(4))
    model[4].weight = norm.weight
    assert normreg.replace(model, include="0").parameters == (8, 8 + 16 + 4)
    assert normreg.replace(model).parameters == (8, 8 + 16 + 4)
    assert str(normreg.replace(nn.Dropout())).startswith("1 layer changed\n")
    assert normreg.restore(model).parameters == (12, 8 + 16 + 4)


def test_the_fast_path_is_noted():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2)
    report = normreg.replace(model)
    note = (
        "2 torch.nn.TransformerEncoderLayers: in evaluation and without gradients, torch's fast path "
        "computes what is inside, changed layers too; torch.backends.mha.set_fastpath_enabled(False) "
        "stops that"
    )
    assert report.notes[:-1] == (note,)
    assert note in " ".join(str(report).split())
    assert max(map(len, str(report).splitlines())) <= 100
    assert normreg.replace(model).notes == ()
    assert len(normreg.replace(nn.TransformerDecoderLayer(8, 2, 8)).notes) == 1


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize(
    ("selection", "error_type", "message"),
    [
        (
            "stemm.*",
            ValueError,
            "'stemm.*' matches none of the names of the 16 layers that replace knows: the nearest are 'stem.",
        ),
        ("stem", ValueError, "16 layers that replace knows: stem.* has those inside it"),
        (["stem.*", "nothing"], ValueError, "'nothing' matches none"),
        ("LayerNorm", ValueError, "'LayerNorm' is the name of a class; strings are patterns of the names of"),
        ("LayerNorm", ValueError, "=torch.nn.LayerNorm, or names such as 'stem.1'"),
        ("*Norm2d", ValueError, "'*Norm2d' is the name of a class"),
        ("qqq", ValueError, "there are for example 'stem.1', 'stem.2', 'blocks.0'"),
        (
            nn.Conv2d,
            ValueError,
            "no torch.nn.Conv2d among the 16 layers that replace knows: choose among torch.nn.",
        ),
        (nn.LazyBatchNorm1d, ValueError, "no torch.nn.LazyBatchNorm1d"),
        (3, TypeError, "got 3: pass for example"),
        ({"stem.1": True}, TypeError, "got {'stem.1': True}: pass for example"),
    ],
    ids=str,
)
def test_a_selection_of_nothing(device, argument, selection, error_type, message):
    model = nested(device)
    was = types(model)
    with pytest.raises(error_type, match=re.escape(message)):
        normreg.replace(model, **{argument: selection})
    assert types(model) == was


def test_an_error_in_a_selection_changes_nothing(device):
    model = nested(device)
    was = types(model)

    def refuse(name, module):
        raise KeyError(name)

    with pytest.raises(KeyError, match=r"stem\.1"):
        normreg.replace(model, include=refuse)
    assert types(model) == was
