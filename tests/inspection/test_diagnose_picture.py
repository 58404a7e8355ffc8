"""What `diagnose`'s picture says, read from matplotlib's objects: names, limits, and what has no place."""

import math

import pytest
import torch
from torch import nn

import normreg

pytest.importorskip("matplotlib")

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg

from normreg.inspection import picture
from normreg.models.naming import without_prefix


class Inside(nn.Module):
    """A model whose layers' names begin with model.layers."""

    def __init__(self, *layers):
        super().__init__()
        self.model = nn.ModuleDict(dict(layers=nn.Sequential(*layers)))

    def forward(self, x):
        return self.model["layers"](x)


def figure(model):
    report = normreg.diagnose(model, torch.randn(32, 4))
    drawn = picture.figure_of(report)
    FigureCanvasAgg(drawn).draw()
    return report, drawn


def ticks(drawn):
    panel = drawn.axes[0]
    return {round(label.get_position()[1]): label.get_text() for label in panel.get_yticklabels()}


def texts(panel):
    return {round(text.get_position()[1]): text.get_text() for text in panel.texts}


@pytest.mark.parametrize("layers", [2, 60, 300])
def test_every_layer_has_its_name_and_room_for_it(layers):
    report, drawn = figure(Inside(*(nn.Linear(4, 4) for _ in range(layers))))
    assert ticks(drawn) == {i: str(i) for i in range(layers)}
    assert "names begin with model.layers." in drawn.axes[0].get_ylabel()
    boxes = [label.get_window_extent() for label in drawn.axes[0].get_yticklabels()]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))
    assert [line.get_xdata()[5 % layers] for line in drawn.axes[0].get_lines()[:1]] == [
        report.layers[5 % layers].activation.rms
    ]


def test_what_is_not_named_is_said(monkeypatch):
    monkeypatch.setattr(picture, "MOST_NAMED", 4)
    _, drawn = figure(Inside(*(nn.Linear(4, 4) for _ in range(10))))
    assert ticks(drawn) == {i: str(i) for i in range(0, 10, 3)}
    assert "all are drawn, 1 of 3 named" in drawn.axes[0].get_ylabel()


def test_one_layer_keeps_its_name():
    _, drawn = figure(Inside(nn.Linear(4, 4)))
    assert ticks(drawn) == {0: "model.layers.0"}


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["a.b.0", "a.b.1.x"], "a.b."),
        (["ab.0", "ac.0"], ""),
        (["a.b", "a.b.0"], "a."),
        (["a.b", "a.b, call 2"], "a."),
        (["a.b"], ""),
        ([], ""),
    ],
)
def test_prefixes_end_with_a_dot(names, prefix):
    assert without_prefix(names) == (prefix, [name.removeprefix(prefix) for name in names])


def test_limits_and_the_flagged_have_names():
    model = Inside(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with torch.no_grad():
        model.model["layers"][0].bias.fill_(-100)
    report, drawn = figure(model)
    (legend,) = drawn.legends
    labels = [text.get_text() for text in legend.get_texts()]
    of = "times the first activation, the last gradient"
    assert labels == [
        "root mean square",
        "|mean|",
        f"vanishing: 0.001 {of}",
        f"exploding: 1000 {of}",
        "flagged",
    ]
    assert legend.get_title().get_text() == str(report).splitlines()[0]
    lines = {line.get_label().split(":")[0]: line for line in drawn.axes[0].get_lines()}
    first = report.layers[0].activation.rms
    assert lines["vanishing"].get_xdata()[0] == pytest.approx(1e-3 * first)
    assert lines["exploding"].get_xdata()[0] == pytest.approx(1e3 * first)
    assert lines["vanishing"].get_linestyle() != lines["exploding"].get_linestyle()
    for panel in drawn.axes:
        assert not legend.get_window_extent().overlaps(panel.get_tightbbox())


def test_what_a_logarithm_has_no_place_for_is_said_in_its_row():
    model = Inside(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    model.model["layers"][0].requires_grad_(False)
    with torch.no_grad():
        model.model["layers"][0].bias.fill_(-100)
        model.model["layers"][3].weight.fill_(math.nan)
    _, drawn = figure(model)
    activations, gradients = map(texts, drawn.axes)
    assert activations == {1: "0", 3: "not finite"}
    assert gradients == {0: "no gradient", 1: "no gradient", 2: "not finite"}
    (line,) = [line for line in drawn.axes[0].get_lines() if line.get_label() == "root mean square"]
    assert [math.isnan(x) for x in line.get_xdata()] == [False, True, False, True]


def test_it_is_white_whatever_matplotlib_is_set_to(tmp_path):
    from matplotlib import image, rc_context

    report = normreg.diagnose(nn.Linear(4, 4), torch.randn(32, 4))
    with rc_context({"savefig.facecolor": "black", "savefig.transparent": True}):
        report.plot(tmp_path / "report.png")
    assert image.imread(tmp_path / "report.png")[0, 0].tolist() == [1, 1, 1, 1]
