"""LayerNorm, BatchNorm and neither in a fully connected network, and what an example's norm tells."""

import functools
import math
import statistics

import numpy as np
import torch
from matplotlib.lines import Line2D
from sklearn.model_selection import cross_val_score
from sklearn.tree import DecisionTreeClassifier

from . import drawing
from .data import LOADERS, split
from .experiment import OPPOSITE, each, exceeds, held, listed, mean_and_deviation, named, outcomes, steps, two
from .training import network, sgd, train

TITLE = "LayerNorm, BatchNorm and neither in a fully connected network"
NORMS = ("none", "BatchNorm", "LayerNorm")
RATES = (0.01, 0.03, 0.1, 0.3)
TRAIN = {"digits": 1297, "breast cancer": 400}
STEPS, WIDTH, HIDDEN = 400, 128, 3
LEAF, FOLDS = 25, 5
KEPT = 0.05  # accuracy that may be lost
SETUP = f"""\
A network of {HIDDEN} hidden layers of {WIDTH} units learns the digits, and another whether a tumour is
malignant (scikit-learn's breast cancer, 30 features of mean 0 and variance 1). {STEPS} steps of SGD
(momentum 0.9, batches of 64) at each of the learning rates {", ".join(map(str, RATES))}; the best
counts, by the mean loss of the last 20 steps. As a feature: the norm of each example's vector in front
of the first normalisation and behind it, before training, as bfloat16 has it (eps leaves a trace in the
seventh digit, which no network reads). How much it tells is the accuracy of a decision tree (leaves of
{LEAF} examples at least) that is given that number alone ({FOLDS}-fold cross-validation), beside the
correlation between the two."""


def run(seed, quick):
    found = {}
    for name in LOADERS:
        data, _ = split(name, seed, TRAIN[name])
        classes = int(data[1].max()) + 1
        widths = [data[0].shape[1], *[WIDTH] * HIDDEN, classes]
        losses = {}
        for norm in NORMS:
            reached = []
            for rate in RATES:
                torch.manual_seed(seed)
                model = network(widths, norm)
                reached.append(train(model, sgd(model, rate), data, steps(STEPS, quick), seed))
            losses[norm] = dict(loss=math.log10(min(reached)), rate=RATES[reached.index(min(reached))])
        found[name] = dict(training=losses, norms=norms_of_examples(widths, data, seed))
    return found


def norms_of_examples(widths, data, seed):
    """What the norm of an example tells before the first normalisation and after it."""
    x, labels = data
    found = {}
    for norm in NORMS[1:]:
        torch.manual_seed(seed)
        linear, normalisation, *_ = network(widths, norm)
        with torch.no_grad():
            before = linear(x)
            after = normalisation(before)
        before, after = (y.norm(dim=1).bfloat16().cpu().double().numpy() for y in (before, after))
        found["before"] = told(before, labels)
        found[norm] = told(after, labels) | dict(
            correlation=float(np.corrcoef(before, after)[0, 1]) if after.std() else 0.0,
            example=[*map(float, after[:60])],
        )
    found["before"]["example"] = [*map(float, before[:60])]
    return found


def guessing(name, seeds):
    """The accuracy of always guessing the most frequent class, seed by seed."""
    labels = [split(name, int(seed), TRAIN[name])[0][1] for seed in seeds]
    return [float(of.bincount().max() / len(of)) for of in labels]


def told(norms, labels):
    classifier = DecisionTreeClassifier(min_samples_leaf=LEAF, random_state=0)
    scores = cross_val_score(classifier, norms.reshape(-1, 1), labels.cpu().numpy(), cv=FOLDS)
    return dict(accuracy=float(scores.mean()), variation=float(norms.std() / norms.mean()))


def verdicts(results):
    found = []
    for name in LOADERS:
        loss = functools.partial(each, results, name, "training")
        told_by = functools.partial(each, results, name, "norms")
        for other, words in (("none", "no normalisation"), ("BatchNorm", "BatchNorm")):
            claim = f"LayerNorm reaches a higher training loss than {words} ({name})."
            what = "log10 of the training loss"
            found.append(exceeds(claim, loss("LayerNorm", "loss"), loss(other, "loss"), what))
        accuracy = "accuracy from the norm alone"
        before = told_by("before", "accuracy")
        claim = f"LayerNorm takes away what the norm of an example tells ({name})."
        found.append(exceeds(claim, before, told_by("LayerNorm", "accuracy"), accuracy))
        claim = f"BatchNorm keeps what the norm of an example tells, to {KEPT:.0%} of accuracy ({name})."
        found.append(exceeds(claim, told_by("BatchNorm", "accuracy"), before, accuracy, by=-KEPT))
    return found


def tables(results):
    losses, norms = [], []
    for name in LOADERS:
        for norm in NORMS:
            reached = each(results, name, "training", norm, "loss")
            rates = sorted(set(each(results, name, "training", norm, "rate")))
            loss = mean_and_deviation([10**loss for loss in reached])
            losses.append(
                (name, named(norm), loss, mean_and_deviation(reached), ", ".join(f"{r:g}" for r in rates))
            )
        for where in ("before", *NORMS[1:]):
            seeds = each(results, name, "norms", where)
            norms.append(
                (
                    name,
                    where if where == "before" else f"after {where}",
                    mean_and_deviation([seed["accuracy"] for seed in seeds]),
                    mean_and_deviation([seed["variation"] for seed in seeds]),
                    "1" if where == "before" else mean_and_deviation([s["correlation"] for s in seeds]),
                )
            )
        norms.append((name, "guessing", mean_and_deviation(guessing(name, results)), "", ""))
    return [
        (
            "Training loss.",
            ("data", "normalisation", "loss", "log10 of the loss", "best rates"),
            losses,
        ),
        (
            "The norm of an example as a feature; guessing: always the most frequent class.",
            ("data", "norm", "accuracy from it alone", "deviation / mean", "correlation with before"),
            norms,
        ),
    ]


def finding(verdicts):
    outcome = outcomes(verdicts)
    higher = {name: f"LayerNorm reaches a higher training loss than BatchNorm ({name})." for name in LOADERS}
    lower = [name for name, claim in higher.items() if outcome[claim] == OPPOSITE]
    claims = {name: f"LayerNorm takes away what the norm of an example tells ({name})." for name in LOADERS}
    taken = held(verdicts, claims)
    takes, reaches = (
        "takes away what the norm of an example tells",
        "reaches a lower training loss than BatchNorm",
    )
    return two(f"LayerNorm {takes}", of_data(taken), reaches, of_data(lower))


def of_data(names):
    return "on both data sets" if len(names) == len(LOADERS) else f"on {listed(names, 'neither data set')}"


def plot(results):
    figure, panels = drawing.mosaic([["loss", "told"], ["example", "legend"]], height=6.4)
    wheres = ("before", *NORMS[1:])
    looks = dict(zip((*NORMS, "before"), zip((*drawing.COLORS[:3], "#666666"), drawing.MARKERS)))
    for name, per_name, values_of in (
        ("loss", NORMS, lambda data, norm: each(results, data, "training", norm, "loss")),
        ("told", wheres, lambda data, where: each(results, data, "norms", where, "accuracy")),
    ):
        for group, data in enumerate(LOADERS):
            for number, which in enumerate(per_name):
                color, marker = looks[which]
                place = group * (len(per_name) + 0.5) + number
                drawing.dots(panels[name], place, values_of(data, which), color=color, marker=marker)
        middles = [group * (len(per_name) + 0.5) + (len(per_name) - 1) / 2 for group, _ in enumerate(LOADERS)]
        panels[name].set_xticks(middles, LOADERS)
        if name == "told":
            for middle, data in zip(middles, LOADERS):
                level = statistics.mean(guessing(data, results))
                panels[name].hlines(
                    level, middle - 1.5, middle + 1.5, color="black", linestyle=":", linewidth=1
                )
        panels[name].grid(visible=False, axis="x")
    panels["loss"].set(ylabel="log10 of the training loss (nats)", title="training loss")
    panels["told"].set(ylabel="accuracy from the norm alone", title="what the norm tells")
    first = next(iter(results.values()))["digits"]["norms"]
    for norm in NORMS[1:]:
        color, marker = looks[norm]
        panels["example"].plot(
            first["before"]["example"], first[norm]["example"], marker, color=color, alpha=0.7
        )
    labels = dict(xlabel="norm of the example before", ylabel="norm after", title="60 digits of one seed")
    panels["example"].set(**labels, ylim=0)
    panels["legend"].set_axis_off()
    lines = [Line2D([], [], color=color, marker=marker, linestyle="") for color, marker in looks.values()]
    lines.append(Line2D([], [], color="black", linestyle=":", linewidth=1))
    names = [*map(named, NORMS), "in front of the first norm", "guessing the most frequent class"]
    panels["legend"].legend(lines, names, loc="center", title="line: mean of the seeds")
    return figure
