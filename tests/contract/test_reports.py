"""What reports print: names that exist, a line for those that are alike, and HTML for notebooks."""

import copy
import dataclasses
import importlib
from collections import OrderedDict
from html.parser import HTMLParser

import pytest
import torch
from nested import nested
from torch import nn
from torch.nn.utils import parametrize

import normreg
from normreg.models import registry
from normreg.models.naming import patterns_of, summary_of
from normreg.models.registry import class_name
from normreg.models.tables import Table, grouped


def blocks(count=12):
    """Alike blocks of three layers, and one more layer."""
    made = (nn.Sequential(nn.LayerNorm(4), nn.Dropout(), nn.LayerNorm(4)) for _ in range(count))
    return nn.ModuleDict({"layers": nn.ModuleList(made), "final": nn.LayerNorm(4)})


ALIKE = """\
37 layers changed, with 100 % of 200 parameters
count  was                 is                 name
-----  ------------------  -----------------  -----------------
25     torch.nn.LayerNorm  normreg.LayerNorm  layers.*.*, final
12     torch.nn.Dropout    normreg.Dropout    layers.*.1"""


def test_a_line_for_layers_that_are_alike():
    report = normreg.replace(blocks())
    assert str(report).startswith(ALIKE + "\n\ntools that look at exact classes")
    assert len(report.changed) == 37
    assert str(normreg.restore(blocks())) == "0 layers changed"


@pytest.mark.parametrize("act", [normreg.replace, normreg.restore])
def test_verbose_has_a_line_for_each(act):
    model = blocks(3)
    if act is normreg.restore:
        normreg.replace(model)
    lines = str(act(model, verbose=True)).splitlines()
    assert lines[1].split() == ["name", "was", "is"]
    assert [line.split()[0] for line in lines[3:13]] == [
        *(f"layers.{block}.{layer}" for block in range(3) for layer in range(3)),
        "final",
    ]


def test_reports_fit_100_columns_whatever_the_names():
    """What is too wide wraps, and says once how all names begin."""
    branch = dict(
        normalisation_in_front=nn.LayerNorm(4),
        projection_of_features=nn.Linear(4, 4),
        dropout_behind=nn.Dropout(),
    )
    branches = dict(attention_and_feed_forward=nn.Sequential(branch := OrderedDict(branch)))
    branches["another_branch_of_it"] = copy.deepcopy(nn.Sequential(branch))
    model = nn.Sequential(OrderedDict(transformer_encoder=nn.Sequential(OrderedDict(branches))))
    x = torch.randn(2, 4)
    printed = {
        act.__name__: str(act(model, *inputs))
        for act, *inputs in (
            (normreg.replace,),
            (normreg.diagnose, x),
            (normreg.explain, x),
            (normreg.parameter_groups, 0.1),
            (normreg.init.kaiming_,),
            (normreg.restore,),
        )
    }
    assert {name for name, text in printed.items() if max(map(len, text.splitlines())) > 100} == set()
    for name in ("diagnose", "explain"):
        heading, *rows = printed[name].splitlines()
        assert heading.endswith("; names begin with transformer_encoder.")
        assert "transformer_encoder" not in "".join(rows)


def test_the_last_line_says_what_tools_overlook():
    said = "call them in `with normreg.restored(model):`"
    for options in (dict(), dict(fuse=True), dict(dry_run=True, fuse=True)):
        report = normreg.replace(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), **options)
        assert str(report).splitlines()[-1].endswith(said)
    assert said not in str(normreg.replace(nn.Linear(2, 2)))


@pytest.mark.parametrize("count", [1, 3])
def test_layers_that_are_normregs_already(count):
    model = nn.Sequential(*(nn.LayerNorm(4) for _ in range(count - 1)), normreg.BatchNormAct2d(3))
    normreg.replace(model)
    verb = "is" if count == 1 else "are"
    assert str(normreg.replace(model)) == f"0 layers changed; {count} {verb} normreg's already"


def layers_of_every_kind():
    known = [getattr(torch.nn, name) for name in dir(torch.nn) if isinstance(getattr(torch.nn, name), type)]
    return [*known, *registry.OURS, nn.modules.linear.NonDynamicallyQuantizableLinear]


def found(path):
    """What stands at an import path."""
    *home, name = path.split(".")
    return getattr(importlib.import_module(".".join(home)), name)


def test_names_of_classes_can_be_imported():
    classes = layers_of_every_kind()
    assert len(classes) > 150
    assert all(found(class_name(cls)) is cls for cls in classes)


def test_a_layer_of_another_library_is_named_by_the_function_that_computes_it(monkeypatch):
    class ScaleNorm(nn.Module):
        def forward(self, x):
            return x

    monkeypatch.setattr(registry, "FORWARDS", dict(registry.FORWARDS))
    normreg.register_layer(ScaleNorm)(registry.FORWARDS["timm.layers.drop.DropPath"])
    (change,) = normreg.replace(nn.Sequential(ScaleNorm())).changed
    assert change.was == "ScaleNorm, derived from torch.nn.Module"
    assert found(change.now) is registry.FORWARDS["timm.layers.drop.DropPath"]


class Halve(nn.Module):
    def forward(self, weight):
        return weight / 2


def test_a_class_made_at_run_time_is_named_by_its_base():
    layer = parametrize.register_parametrization(nn.LayerNorm(6), "weight", Halve())
    assert class_name(type(layer)) == "ParametrizedLayerNorm, derived from torch.nn.LayerNorm"
    assert class_name(type("FSDPLayerNorm", (type(layer),), {})) == (
        "FSDPLayerNorm, derived from ParametrizedLayerNorm, derived from torch.nn.LayerNorm"
    )
    assert class_name(Halve) == "test_reports.Halve"


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        ([], []),
        (["norm"], ["norm"]),
        (["7"], ["7"]),
        (["0", "3"], ["*"]),
        (["layers.0.norm", "layers.11.norm"], ["layers.*.norm"]),
        (["layers.3.norm2", "layers.4.norm2"], ["layers.*.norm2"]),
        (["stage1.0.bn1", "stage1.0.bn2", "stage2.0.bn1"], ["stage*.0.bn*"]),
        (["a.0", "b", "a.1", "c.0"], ["a.*", "b", "c.0"]),
    ],
    ids=str,
)
def test_patterns_of_names(names, patterns):
    assert patterns_of(names) == patterns


def test_many_names_are_counted():
    assert summary_of([]) == ""
    assert summary_of(["a", "b.0", "b.1"]) == "a, b.0, b.1"
    assert summary_of(["a", *(f"blocks.{block}.norm" for block in range(9))]) == "a, blocks.*.norm"
    long = "encoder.a_long_name"
    assert summary_of([long + end for end in "abcd"]) == f"{long}a, {long}b and 2 more"
    assert summary_of([3 * long, "a"]) == f"{3 * long} and 1 more"


def test_rows_that_differ_are_not_grouped():
    table = Table("heading", ("name", "class"), [("a", "x"), ("b", "y")])
    assert grouped(table) is table
    rows = [("a.0", "x"), ("b", "y"), ("a.1", "x")]
    together = grouped(Table("heading", ("name", "class"), rows))
    assert together.columns == ("count", "class", "name")
    assert together.rows == [("2", "x", "a.0, a.1"), ("1", "y", "b")]


class Cells(HTMLParser):
    """The texts of the cells of tables, row by row."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def reports(device):
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Dropout(0.0)).to(device)
    x = torch.randn(2, 4, device=device)
    yield normreg.replace(model)
    yield normreg.explain(model, x)
    yield normreg.diagnose(model, x)
    yield normreg.init.xavier_(model)


def test_a_notebook_shows_the_tables(device):
    for report in reports(device):
        shown, printed = Cells(report._repr_html_()).rows, str(report).splitlines()
        assert repr(report) == str(report)
        assert len(shown) >= 2
        for row in shown:
            assert " ".join(" ".join(row).split()) in [" ".join(line.split()) for line in printed]


def test_html_is_escaped(device):
    report = normreg.replace(nested(device), include=lambda name, module: False)
    assert report.changed == ()
    assert "<b>" not in dataclasses.replace(report, notes=("<b>",))._repr_html_()
    assert "&lt;b&gt;" in dataclasses.replace(report, notes=("<b>",))._repr_html_()
