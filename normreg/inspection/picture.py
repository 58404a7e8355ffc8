"""The picture of a `Diagnosis`: a row a layer, its activation on the left and its gradient on the right."""

import math
import os
from collections.abc import Sequence
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from normreg.inspection.diagnosis import Diagnosis, reference
from normreg.inspection.measurement import Statistics
from normreg.models.naming import counted, without_prefix

ROUNDING = 1e-6  # share of the root mean square below which a mean is not drawn
MOST_NAMED = 400  # layers; of more, a share is named, because a picture has an end
ROW, LETTER = 0.15, 0.065  # inches of a name of 7 points: its row, and each of its letters
LOOK = {"figure.facecolor": "white", "savefig.facecolor": "white", "font.size": 9, "savefig.dpi": 120}
BLUE, ORANGE, YELLOW = "#0072b2", "#d55e00", "#e69f00"  # Okabe and Ito


def draw(diagnosis: Diagnosis, path: str | os.PathLike[str]) -> None:
    """Writes the picture."""
    with style.context(["default", LOOK]):
        figure_of(diagnosis).savefig(path)


def figure_of(diagnosis: Diagnosis) -> Figure:
    """The figure of all layers; each is named, or the axis says how many are."""
    layers = diagnosis.layers
    prefix, names = without_prefix([layer.name for layer in layers])
    every = math.ceil(len(layers) / MOST_NAMED) or 1
    rows = min(len(layers), MOST_NAMED)
    width = 7 + LETTER * max(map(len, names), default=0)
    figure = Figure(figsize=(width, 2.4 + ROW * max(rows, 16)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, what in zip(panels, ("activation", "gradient")):
        _draw_panel(panel, diagnosis, what)
    panels[0].set_yticks(range(0, len(names), every), names[::every], fontsize=7)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    label = "layers, in the order of their calls"
    label += f"; names begin with {prefix}" * bool(prefix)
    label += f"; all are drawn, 1 of {every} named" * (every > 1)
    panels[0].set_ylabel(label if rows > 30 else label.replace("; ", "\n"))
    heading = f"{counted(layers)}, {len(diagnosis.flagged)} flagged; loss {diagnosis.loss:.4g}"
    look = dict(frameon=False, alignment="left", fontsize=8, title_fontsize=11)
    figure.legend(handles=_legend(panels, diagnosis), title=heading, loc="outside upper left", **look)
    return figure


def _draw_panel(panel: Any, diagnosis: Diagnosis, what: str) -> None:
    layers = diagnosis.layers
    found = [getattr(layer, what) for layer in layers]
    drawn = [s if _why_not_drawn(s) is None else None for s in found]
    panel.set(xscale="log", xlabel=f"{what}, in its units", title=f"{what}s")
    panel.tick_params(top=True, labeltop=len(layers) > 60)
    panel.grid(alpha=0.3)
    panel.set_axisbelow(True)
    if any(drawn):
        places = range(len(drawn))
        sizes = [s.rms if s else math.nan for s in drawn]
        panel.plot(sizes, places, "o-", color=BLUE, markersize=4, label="root mean square")
        means = [abs(s.mean) if s and abs(s.mean) > ROUNDING * s.rms else math.nan for s in drawn]
        panel.plot(means, places, "x", color=ORANGE, markersize=5, label="|mean|")
        for limit, line in (("vanishing", "--"), ("exploding", "-.")):
            at = getattr(diagnosis, limit) * reference(layers, what)
            panel.axvline(at, color="black", linestyle=line, linewidth=1, label=limit)
    else:
        panel.set_xticks([], [])
    for place, layer in enumerate(layers):
        if any(what in flag or flag == "dead" for flag in layer.flags):
            panel.axhspan(place - 0.5, place + 0.5, color=YELLOW, alpha=0.3, linewidth=0)
        if (why := _why_not_drawn(found[place])) is not None:
            ground = dict(facecolor="white", edgecolor="none", alpha=0.7, pad=0.5)
            where = dict(transform=panel.get_yaxis_transform(), va="center", fontsize=7, bbox=ground)
            panel.text(0.01, place, why, **where)


def _why_not_drawn(statistics: Statistics | None) -> str | None:
    """What stands in the row of a layer that a logarithmic axis has no place for."""
    if statistics is None:
        return "no gradient"
    return "0" if statistics.rms == 0 else None if math.isfinite(statistics.rms) else "not finite"


def _legend(panels: Sequence[Any], diagnosis: Diagnosis) -> list[Any]:
    """One entry of each kind in either panel; limits with the layer that they are relative to."""
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    for label, factor in (("vanishing", diagnosis.vanishing), ("exploding", diagnosis.exploding)):
        if label in handles:
            of = "the first activation, the last gradient"
            handles[label].set_label(f"{label}: {factor:g} times {of}")
    flagged = [Patch(color=YELLOW, alpha=0.3, label="flagged")] * bool(diagnosis.flagged)
    return [*handles.values(), *flagged]
