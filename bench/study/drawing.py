"""The look of the figures: one size, colours that the colour-blind tell apart, bands of one deviation."""

import statistics

from matplotlib.figure import Figure

from .experiment import deviation

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito
STYLES = ("-", "--", "-.", ":")
WIDTH = 10


def panels(columns, rows=1, height=3.8, **options):
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def means_and_deviations(runs):
    columns = list(zip(*runs, strict=True))
    return list(map(statistics.mean, columns)), list(map(deviation, columns))


def band(panel, x, runs, *, color, label, style="-", marker=None):
    """Draws the mean over the seeds and a band of one deviation; `runs` has each seed's list of values."""
    means, deviations = means_and_deviations(runs)
    panel.plot(x, means, style, color=color, label=label, linewidth=1.6, marker=marker, markersize=4)
    lower, upper = ([m + sign * d for m, d in zip(means, deviations)] for sign in (-1, 1))
    panel.fill_between(x, lower, upper, color=color, alpha=0.2, linewidth=0)


def bars(panel, places, runs, *, color, label, shift):
    """Draws the mean over the seeds with a bar of one deviation, shifted beside those of other lines."""
    means, deviations = means_and_deviations(runs)
    places = [place + shift for place in places]
    panel.errorbar(places, means, deviations, fmt="o-", color=color, label=label, markersize=4, capsize=2)


def dots(panel, groups, labels, *, colors=None):
    """Draws a dot for each seed and a line for the mean, group by group."""
    for i, values in enumerate(groups):
        color = (colors or COLORS)[i % len(colors or COLORS)]
        offsets = [i + 0.25 * (j / max(1, len(values) - 1) - 0.5) for j in range(len(values))]
        panel.plot(offsets, values, "o", color=color, markersize=4, alpha=0.8)
        mean = statistics.mean(values)
        panel.plot([i - 0.3, i + 0.3], [mean, mean], color=color, linewidth=2)
    panel.set_xticks(range(len(groups)), labels)
    panel.set_xlim(-0.6, len(groups) - 0.4)
    panel.grid(alpha=0.3, axis="y")


def save(figure, path):
    figure.savefig(path, dpi=90, metadata={"Software": None})
