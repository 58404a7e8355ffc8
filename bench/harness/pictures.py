"""Figures of one style in small files: opaque, of few colours, and the same bytes at every run."""

import io
import textwrap

import matplotlib.style

DPI = 160
PALETTE = 128  # colours in a file
WIDTH = 7  # inches: text of 10 points stays legible on a phone, where all of it is four inches wide
TITLE_WIDTH = 70  # characters
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE = {
    "figure.constrained_layout.use": True,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "font.size": 10,
    "axes.prop_cycle": matplotlib.cycler(color=COLORS),
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.ymargin": 0.08,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2,
}


def styled():
    """A context in which figures have this style, whatever matplotlib is set to."""
    return matplotlib.style.context(["default", STYLE])


def title(figure, sentence):
    """Gives the figure its finding as the title."""
    figure.suptitle(textwrap.fill(sentence, TITLE_WIDTH))


def save(figure, path):
    """Writes a figure as a PNG with a palette, a third as large as one without."""
    from PIL import Image

    figure.savefig(drawn := io.BytesIO(), dpi=DPI, facecolor="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    how = dict(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # which keeps rare colours
    Image.open(drawn).convert("RGB").quantize(PALETTE, **how).save(path, optimize=True, dpi=(DPI, DPI))
