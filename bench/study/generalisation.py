"""The gap between test and training loss, by the strengths of dropout and L2, alone and together."""

import matplotlib
import numpy as np
import torch
from scipy import stats

from . import drawing
from .data import split
from .experiment import each, exceeds, lies, mean_and_deviation, outcomes, steps, two, with_which
from .training import evaluate, network, sgd, train

TITLE = "Dropout, L2 and the generalisation gap"
DROPOUTS = (0.0, 0.1, 0.3, 0.5, 0.7)
STYLES = ("-", "--", "-.", ":", (0, (6, 1.5)))  # of the lines, by dropout
DECAYS = (0.0, 1e-4, 1e-3, 1e-2, 3e-2)
TRAIN, WIDTH, STEPS, RATE = 200, 256, 400, 0.05
SETUP = f"""\
A network of two hidden layers of {WIDTH} units learns {TRAIN} digits; the others are halved into
validation and test. {STEPS} steps of SGD (rate {RATE}, momentum 0.9, batches of 64) with
`normreg.Dropout` of p = {", ".join(f"{p:g}" for p in DROPOUTS)} behind each hidden layer and
`normreg.l2_penalty` of {", ".join(f"{decay:g}" for decay in DECAYS)} in the loss, every combination. The
gap is test loss minus training loss, both in evaluation mode and without the penalty. For the last
claims, strengths are chosen by the validation loss, and judged on the test half."""


def key(dropout, decay):
    return f"{dropout:g}, {decay:g}"


def run(seed, quick):
    data, rest = split("digits", seed, TRAIN)
    half = len(rest[0]) // 2
    parts = dict(train=data, validation=tuple(t[:half] for t in rest), test=tuple(t[half:] for t in rest))
    found = {}
    for dropout in DROPOUTS:
        for decay in DECAYS:
            torch.manual_seed(seed)
            model = network([64, WIDTH, WIDTH, 10], dropout=dropout)
            train(model, sgd(model, RATE), data, steps(STEPS, quick), seed, weight_decay=decay)
            losses = {name: evaluate(model, part) for name, part in parts.items()}
            found[key(dropout, decay)] = dict(
                {name: loss for name, (loss, _) in losses.items()},
                gap=losses["test"][0] - losses["train"][0],
                accuracy=losses["test"][1],
            )
    return found


ALONE = {
    "dropout": [key(p, 0) for p in DROPOUTS],
    "L2": [key(0, decay) for decay in DECAYS],
}
TOGETHER = [key(p, decay) for p in DROPOUTS[1:] for decay in DECAYS[1:]]


def chosen(results, keys):
    """The cell of least validation loss among `keys`, seed by seed."""
    return [min(keys, key=lambda k: result[k]["validation"]) for result in results.values()]


def test_losses(results, keys):
    picked = chosen(results, keys)
    return [result[k]["test"] for result, k in zip(results.values(), picked, strict=True)]


def verdicts(results):
    found = []
    for name, keys in ALONE.items():
        correlations = [
            float(stats.spearmanr(range(len(keys)), [result[k]["gap"] for k in keys]).statistic)
            for result in results.values()
        ]
        claim = f"The gap shrinks with the strength of {name}."
        found.append(lies(claim, correlations, "rank correlation of strength and gap", below=0))
    none = each(results, key(0, 0), "test")
    losses = {name: test_losses(results, keys) for name, keys in ALONE.items()}
    together = test_losses(results, TOGETHER)
    for name in ALONE:
        claim = f"{name[0].upper()}{name[1:]} lowers the test loss."
        found.append(exceeds(claim, none, losses[name], "test loss"))
    for name in ALONE:
        claim = f"Together they reach a lower test loss than {name} alone."
        found.append(exceeds(claim, losses[name], together, "test loss"))
    return found


def tables(results):
    headers = ("dropout \\ L2", *(f"{decay:g}" for decay in DECAYS))
    made = []
    for what, caption in (
        ("gap", "Gap: test loss minus training loss, in nats."),
        ("test", "Test loss, in nats."),
        ("accuracy", "Test accuracy."),
    ):
        rows = [
            (f"{p:g}", *(mean_and_deviation(each(results, key(p, decay), what)) for decay in DECAYS))
            for p in DROPOUTS
        ]
        made.append((caption, headers, rows))
    return made


def finding(verdicts):
    outcome, seeds = outcomes(verdicts), verdicts[0].seeds
    shrinks = {name: f"The gap shrinks with the strength of {name}." for name in ALONE}
    lower = {name: f"{name[0].upper()}{name[1:]} lowers the test loss." for name in ALONE}
    where = [
        with_which({name: outcome[claim] for name, claim in claims.items()}, seeds)
        for claims in (shrinks, lower)
    ]
    return two(
        "The gap between test and training loss shrinks",
        where[0],
        "the test loss at the best strength falls",
        where[1],
    )


def plot(results):
    figure, panels = drawing.mosaic([["gap", "test"], ["train", "legend"]], height=6.4)
    places = range(len(DECAYS))
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(DROPOUTS)))
    for what, label in (
        ("gap", "test loss - training loss"),
        ("test", "test loss"),
        ("train", "training loss"),
    ):
        for i, (p, color, marker, style) in enumerate(zip(DROPOUTS, colors, drawing.MARKERS, STYLES)):
            runs = list(zip(*(each(results, key(p, decay), what) for decay in DECAYS)))
            look = dict(color=color, marker=marker, linestyle=style, label=f"dropout {p:g}")
            drawing.bars(panels[what], places, runs, shift=0.07 * (i - 2), **look)
        panels[what].set_xticks(places, [f"{decay:g}" for decay in DECAYS])
        panels[what].set(xlabel="strength of L2", ylabel=f"{label} (nats)", title=label)
    panels["train"].set_yscale("log")  # where most curves are a hundredth of the highest
    panels["legend"].set_axis_off()
    handles = panels["gap"].get_legend_handles_labels()
    panels["legend"].legend(*handles, loc="center", title="mean and deviation of the seeds")
    return figure
