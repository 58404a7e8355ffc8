"""How the figures look: one size, colours that the colour-blind tell apart, bands of one deviation."""

import statistics

from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito
STYLES = ("-", "--", "-.", ":")
WIDTH = 10


def panels(columns, rows=1, height=3.8, **options):
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def band(panel, x, runs, *, color, label, style="-", marker=None):
    """Mean over seeds, and one deviation to both sides; `runs` are the seeds' lists of values."""
    columns = list(zip(*runs, strict=True))
    means = [statistics.mean(column) for column in columns]
    deviations = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns]
    panel.plot(x, means, style, color=color, label=label, linewidth=1.6, marker=marker, markersize=4)
    lower, upper = ([m + sign * d for m, d in zip(means, deviations)] for sign in (-1, 1))
    panel.fill_between(x, lower, upper, color=color, alpha=0.2, linewidth=0)


def bars(panel, places, runs, *, color, label, shift):
    """Mean over seeds and one deviation, beside those of the other lines."""
    columns = list(zip(*runs, strict=True))
    means = [statistics.mean(column) for column in columns]
    deviations = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns]
    places = [place + shift for place in places]
    panel.errorbar(places, means, deviations, fmt="o-", color=color, label=label, markersize=4, capsize=2)


def dots(panel, groups, labels, *, colors=None):
    """A dot a seed and a bar for the mean, group by group."""
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
