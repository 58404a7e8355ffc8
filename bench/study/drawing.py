"""What figures of experiments are drawn with: means over the seeds, with one deviation."""

import statistics

from matplotlib.figure import Figure

from bench.harness.pictures import COLORS, MARKERS, WIDTH

from .experiment import deviation

__all__ = ["COLORS", "MARKERS", "WIDTH", "band", "bars", "dots", "mosaic"]


def mosaic(layout, height, **options):
    """A figure with named panels, as `Figure.subplot_mosaic` lays them out: (figure, {name: panel})."""
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplot_mosaic(layout, **options)


def means_and_deviations(runs):
    columns = list(zip(*runs, strict=True))
    return list(map(statistics.mean, columns)), list(map(deviation, columns))


def band(panel, x, runs, *, color, label, **line):
    """Draws the mean over the seeds and a band of one deviation; `runs` has each seed's list of values."""
    means, deviations = means_and_deviations(runs)
    panel.plot(x, means, color=color, label=label, **line)
    lower, upper = ([m + sign * d for m, d in zip(means, deviations)] for sign in (-1, 1))
    panel.fill_between(x, lower, upper, color=color, alpha=0.12, linewidth=0)


def bars(panel, places, runs, *, shift, **line):
    """Draws the mean over the seeds with a bar of one deviation, shifted beside those of other lines."""
    means, deviations = means_and_deviations(runs)
    panel.errorbar([place + shift for place in places], means, deviations, elinewidth=1, **line)


def dots(panel, place, values, *, color, marker="o", mean=True):
    """Draws a dot for each seed of a group, and a line for the mean."""
    offsets = [place + 0.3 * (j / max(1, len(values) - 1) - 0.5) for j in range(len(values))]
    panel.plot(offsets, values, marker, color=color, alpha=0.7)
    if mean:
        panel.hlines(statistics.mean(values), place - 0.35, place + 0.35, color=color, linewidth=2)
