"""Every combination of initialisation, normalisation, optimizer, weight decay and dropout."""

import itertools
import statistics

import numpy as np
import torch
from matplotlib.colors import PowerNorm

import normreg

from . import drawing
from .data import split
from .experiment import deviation, each, exceeds, held, listed, mean_and_deviation, named, steps, two
from .training import evaluate, network, train

TITLE = "How they interact"
FACTORS = {
    "initialisation": ("Kaiming", "Xavier", "normal 0.02"),
    "normalisation": ("none", "BatchNorm", "LayerNorm"),
    "optimizer": ("SGD", "AdamW"),
    "weight decay": ("0", "0.01"),
    "dropout": ("0", "0.3"),
}
CELLS = [*itertools.product(*FACTORS.values())]
PRESETS = {
    "Kaiming": normreg.init.kaiming_,
    "Xavier": normreg.init.xavier_,
    "normal 0.02": normreg.init.truncated_normal_,
}
TRAIN, WIDTH, HIDDEN, STEPS = 400, 64, 5, 200
SETUP = f"""\
A network of {HIDDEN} hidden layers of {WIDTH} units learns {TRAIN} digits in {STEPS} steps (batches of
64), for each of the {len(CELLS)} combinations of initialisation (`normreg.init.kaiming_`, `xavier_`,
`truncated_normal_`), normalisation, optimizer (SGD, rate 0.03 and momentum 0.9; AdamW, rate 0.003),
weight decay (through `normreg.parameter_groups`, which leaves out norms and biases) and dropout. What
counts is the accuracy on the {1797 - TRAIN} other digits. A main effect is the mean over all cells of a
level, against the mean of all."""


def key(cell):
    return ", ".join(cell)


def run(seed, quick):
    data, test = split("digits", seed, TRAIN)
    return {key(cell): accuracy_of(cell, data, test, seed, quick) for cell in CELLS}


def accuracy_of(cell, data, test, seed, quick):
    preset, norm, optimizer, decay, dropout = cell
    torch.manual_seed(seed)
    model = network([64, *[WIDTH] * HIDDEN, 10], norm, float(dropout))
    PRESETS[preset](model)
    groups = normreg.parameter_groups(model, float(decay))
    if optimizer == "SGD":
        optimizer = torch.optim.SGD(groups, 0.03, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(groups, 0.003)
    train(model, optimizer, data, steps(STEPS, quick), seed)
    return evaluate(model, test)[1]


def mean_over(result, **levels):
    """The mean of one seed over the cells of these levels."""
    wanted = {name.replace("_", " "): level for name, level in levels.items()}
    cells = [
        cell
        for cell in CELLS
        if all(dict(zip(FACTORS, cell))[name] == level for name, level in wanted.items())
    ]
    return statistics.mean(result[key(cell)] for cell in cells)


def over(results, **levels):
    return [mean_over(result, **levels) for result in results.values()]


def spread(results, factor, **levels):
    """The best minus the worst level of a factor, seed by seed."""
    means = [over(results, **{factor: level}, **levels) for level in FACTORS[factor]]
    return [max(values) - min(values) for values in zip(*means, strict=True)]


def gain(results, factor, **levels):
    """The gain of a factor's second level over its first, seed by seed."""
    first, second = (
        over(results, **{factor: level}, **levels) for level in FACTORS[factor.replace("_", " ")]
    )
    return [b - a for a, b in zip(first, second, strict=True)]


def additive_share(result):
    """The share of the variance over cells that the sum of the main effects explains."""
    mean = statistics.mean(result.values())
    total = sum((value - mean) ** 2 for value in result.values())
    explained = 0.0
    for factor, levels in FACTORS.items():
        for level in levels:
            effect = mean_over(result, **{factor.replace(" ", "_"): level}) - mean
            explained += effect**2 * len(CELLS) / len(levels)
    return explained / total if total else 1.0


def verdicts(results):
    found = []
    none = spread(results, "initialisation", normalisation="none")
    for norm in FACTORS["normalisation"][1:]:
        claim = f"{norm} makes the initialisation matter less."
        what = "accuracy of the best minus the worst initialisation, without to with"
        found.append(exceeds(claim, none, spread(results, "initialisation", normalisation=norm), what))
    for norm in FACTORS["normalisation"][1:]:
        claim = f"{norm} raises the accuracy, on average over everything else."
        what = "accuracy"
        found.append(
            exceeds(claim, over(results, normalisation=norm), over(results, normalisation="none"), what)
        )
    without, with_norm = (gain(results, "dropout", normalisation=norm) for norm in ("none", "BatchNorm"))
    claim = "Dropout gains less with BatchNorm than without normalisation."
    found.append(exceeds(claim, without, with_norm, "accuracy gained by dropout, without to with"))
    sgd, adamw = (gain(results, "weight_decay", optimizer=name) for name in FACTORS["optimizer"])
    claim = "Weight decay gains more under SGD than, decoupled, under AdamW."
    found.append(exceeds(claim, sgd, adamw, "accuracy gained by weight decay"))
    shares = [additive_share(result) for result in results.values()]
    claim = "Interactions matter: they explain more of the variance between cells than all main effects do."
    others = [1 - share for share in shares]
    found.append(exceeds(claim, others, shares, "share of the variance"))
    return found


def tables(results):
    rows = []
    for factor, levels in FACTORS.items():
        for level in levels:
            values = over(results, **{factor.replace(" ", "_"): level})
            means = [statistics.mean(result.values()) for result in results.values()]
            effects = [value - mean for value, mean in zip(values, means, strict=True)]
            rows.append((factor, named(level), mean_and_deviation(values), mean_and_deviation(effects)))
    cells = {key(cell): each(results, key(cell)) for cell in CELLS}
    best = sorted(cells, key=lambda name: -statistics.mean(cells[name]))
    ends = [(named(name), mean_and_deviation(cells[name])) for name in (*best[:5], *best[-3:])]
    return [
        ("Main effects.", ("factor", "level", "accuracy", "effect"), rows),
        ("The five best cells and the three worst.", (", ".join(FACTORS), "accuracy"), ends),
    ]


def finding(verdicts):
    norms = FACTORS["normalisation"][1:]
    steadier = held(verdicts, {norm: f"{norm} makes the initialisation matter less." for norm in norms})
    better = {norm: f"{norm} raises the accuracy, on average over everything else." for norm in norms}
    where = [f"with {listed(names, 'neither norm')}" for names in (steadier, held(verdicts, better))]
    return two("The initialisation matters less", where[0], "the accuracy is higher", where[1])


def plot(results):
    figure, panels = drawing.mosaic([["cells"], ["effects"]], height=8, height_ratios=[1.15, 1])
    plot_cells(figure, panels["cells"], results)
    plot_effects(panels["effects"], results)
    return figure


def plot_cells(figure, panel, results):
    """Draws the accuracy of every combination; colours span those that occur, most of them for high ones."""
    down = [*itertools.product(FACTORS["normalisation"], FACTORS["initialisation"])]
    across = [*itertools.product(FACTORS["optimizer"], FACTORS["weight decay"], FACTORS["dropout"])]
    means = np.array(
        [[statistics.mean(each(results, key((init, norm, *rest)))) for rest in across] for norm, init in down]
    )
    scale = PowerNorm(3, vmin=means.min(), vmax=means.max())
    image = panel.imshow(means, cmap="cividis", aspect="auto", norm=scale)
    for (row, column), value in np.ndenumerate(means):
        color = "white" if scale(value) < 0.5 else "black"
        panel.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=9)
    panel.set_yticks(range(len(down)), [f"{named(norm)}, {init}" for norm, init in down], fontsize=9)
    panel.set_xticks(range(len(across)), ["\n".join(rest) for rest in across], fontsize=9)
    panel.set(xlabel="optimizer, weight decay, dropout", title="every combination")
    panel.grid(visible=False)
    ticks = scale.inverse(np.linspace(0, 1, 6))
    figure.colorbar(
        image, ax=panel, label="test accuracy, mean of the seeds (cubic scale)", ticks=ticks, format="%.2f"
    )


def plot_effects(panel, results):
    """Draws the mean accuracy of each level of each factor."""
    place, labels = 0, {}
    for (factor, levels), color, marker in zip(FACTORS.items(), drawing.COLORS, drawing.MARKERS):
        for level in levels:
            values = over(results, **{factor.replace(" ", "_"): level})
            look = dict(fmt=marker, color=color)
            panel.errorbar(statistics.mean(values), place, xerr=deviation(values), **look)
            labels[place] = f"{factor}: {named(level)}"
            place += 1
        place += 0.6
    panel.set_yticks([*labels], labels.values(), fontsize=9)
    panel.invert_yaxis()
    panel.set(xlabel="test accuracy, mean and deviation of the seeds", title="each factor, over all others")
