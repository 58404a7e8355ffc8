"""Activations and gradients through 50 layers, by the variance of the initial weights."""

import functools
import itertools
import math

import torch
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

import normreg

from . import drawing
from .data import DEVICE, split
from .experiment import (
    HELD,
    LARGEST_LOSS,
    NOT_HELD,
    OPPOSITE,
    diverged,
    each,
    exceeds,
    lies,
    mean_and_deviation,
    named,
    outcomes,
    steps,
    with_which,
)
from .training import network, sgd, train

TITLE = "Initial weights and depth"
LAYERS, WIDTH = 50, 64
VARIANCES = (1, 2, 3)  # in units of 1 / n
NORMS = ("none", "BatchNorm", "LayerNorm")
CELLS = [*itertools.product(NORMS, VARIANCES)]
RATES = (0.03, 0.003)
STEPS = 200
STEADY = 2  # powers of ten that the variance may gain or lose over all layers
SETUP = f"""\
A fully connected ReLU network of {LAYERS} layers of {WIDTH} units learns the digits. Its weights are
drawn by `normreg.init.kaiming_`, of variance 2/n (n inputs), and scaled to 1/n, 2/n or 3/n. Before
training, `normreg.diagnose` measures the variance of each ReLU's output and of its gradient, on 256
images, by a random projection of the output. Then {STEPS} steps of SGD (momentum 0.9, batches of 64) at
each of the learning rates {", ".join(map(str, RATES))}; of each network the best counts, by the mean
loss of the last 20 steps. A run diverges where a loss is not finite, or the last are above
{LARGEST_LOSS:,.0f}; it counts as a loss of {LARGEST_LOSS:,.0f}."""


def key(norm, variance):
    return f"{norm}, {variance}/n"


def run(seed, quick):
    data, _ = split("digits", seed, 1297)
    found = {}
    for norm in NORMS:
        for variance in VARIANCES:
            losses = []
            for rate in RATES:
                torch.manual_seed(seed)
                model = network([64, *[WIDTH] * LAYERS, 10], norm)
                scale_weights(model, variance)
                if rate == RATES[0]:
                    report = normreg.diagnose(model, data[0][:256].to(DEVICE))
                losses.append(train(model, sgd(model, rate), data, steps(STEPS, quick), seed))
            measured = [layer for layer in report if layer.kind == "torch.nn.ReLU"]
            found[key(norm, variance)] = dict(
                activation=[logarithm(layer.activation.variance) for layer in measured],
                gradient=[logarithm(layer.gradient.variance) for layer in measured],
                flags=sorted({flag for layer in report for flag in layer.flags}),
                loss=math.log10(min(losses)),
                rate=RATES[losses.index(min(losses))],
            )
    return found


def scale_weights(model, variance):
    with torch.no_grad():
        for module in model:
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(math.sqrt(variance / 2))


def logarithm(variance):
    return math.log10(max(variance, 1e-300))


def change(results, name, what):
    """log10 of the variance where a signal leaves the network over that where it enters.

    Activations go from the first layer to the last, gradients back.
    """
    ends = (-1, 0) if what == "activation" else (0, -1)
    return [values[ends[0]] - values[ends[1]] for values in each(results, name, what)]


def verdicts(results):
    found = []
    for what, direction in (("activation", "last layer to first"), ("gradient", "first layer to last")):
        change_of = functools.partial(change, results, what=what)
        scale = f"log10 of the ratio of {what} variances, {direction}"
        for variance, effect, limits in (
            (1, f"make {what}s vanish", dict(below=-STEADY)),
            (2, f"keep the variance of {what}s", dict(above=-STEADY, below=STEADY)),
            (3, f"make {what}s explode", dict(above=STEADY)),
        ):
            claim = f"Weights of variance {variance}/n {effect}."
            found.append(lies(claim, change_of(key("none", variance)), scale, **limits))
        for norm in NORMS[1:]:
            changes = zip(*(change_of(key(norm, variance)) for variance in VARIANCES), strict=True)
            worst = [max(values, key=abs) for values in changes]
            claim = f"{norm} keeps the variance of {what}s whatever the weights' is."
            which = f"{scale}, where it is furthest from 0 of the three"
            found.append(lies(claim, worst, which, above=-STEADY, below=STEADY))
    loss = {cell: each(results, cell, "loss") for cell in itertools.starmap(key, CELLS)}
    for variance in (1, 3):
        claim = f"From 2/n a lower training loss is reached than from {variance}/n, without normalisation."
        found.append(exceeds(claim, loss[key("none", variance)], loss["none, 2/n"], "log10 of the loss"))
    for norm in NORMS[1:]:
        for variance in (1, 3):
            claim = f"From {variance}/n, a lower training loss is reached with {norm} than without."
            plain = loss[key("none", variance)]
            found.append(exceeds(claim, plain, loss[key(norm, variance)], "log10 of the loss"))
    return found


def tables(results):
    rows = []
    for name in itertools.starmap(key, CELLS):
        rates = each(results, name, "rate")
        flags = sorted({flag for found in each(results, name, "flags") for flag in found})
        rows.append(
            (
                named(name),
                mean_and_deviation(change(results, name, "activation")),
                mean_and_deviation(change(results, name, "gradient")),
                told_loss(each(results, name, "loss")),
                ", ".join(f"{rate:g}" for rate in sorted(set(rates))),
                ", ".join(flags) or "none",
            )
        )
    headers = (
        "norm, variance of weights",
        "log10 of activation variance, last to first",
        "log10 of gradient variance, first to last",
        "training loss",
        "best rates",
        "flags of diagnose",
    )
    return [("Mean and deviation over the seeds.", headers, rows)]


def told_loss(losses):
    """Mean and deviation of logarithms of losses, or how many runs diverged."""
    if number := sum(map(diverged, losses)):
        return "diverged" if number == len(losses) else f"{number} of {len(losses)} diverged"
    return mean_and_deviation([10**loss for loss in losses])


def finding(verdicts):
    claims = {"weights of variance 2/n": "Weights of variance 2/n keep the variance of {}s."}
    claims |= {norm: f"{norm} keeps the variance of {{}}s whatever the weights' is." for norm in NORMS[1:]}
    outcome, of_both = outcomes(verdicts), {}
    for name, claim in claims.items():
        found = {outcome[claim.format(what)] for what in ("activation", "gradient")}
        of_both[name] = next(kind for kind in (OPPOSITE, NOT_HELD, HELD) if kind in found)
    sentence = f"Through {LAYERS} layers, activations and gradients both keep their variance"
    return f"{sentence} {with_which(of_both, verdicts[0].seeds)}"


def plot(results):
    figure, panels = drawing.mosaic([["activation", "gradient"], ["loss", "loss"]], height=7)
    panels["gradient"].sharey(panels["activation"])
    looks = dict(zip(NORMS, zip(drawing.COLORS, ("-", "-", (0, (3, 3))))))
    heights = {"BatchNorm": 2.0, "none": 2.1, "LayerNorm": 2.2}  # its three curves are one bundle, below
    markers = dict(zip(VARIANCES, drawing.MARKERS))
    for what in ("activation", "gradient"):
        for number, (norm, variance) in enumerate(CELLS):
            color, style = looks[norm]
            runs, turns = each(results, key(norm, variance), what), (2 * number, 2 * len(CELLS))
            # curves coincide, and their markers take turns
            look = dict(color=color, linestyle=style, marker=markers[variance], markevery=turns)
            look |= dict(zorder=heights[norm])
            drawing.band(panels[what], range(1, 1 + len(runs[0])), runs, label=key(norm, variance), **look)
        panels[what].set(xlabel="layer", title=f"{what}s, before training")
    panels["activation"].set_ylabel("log10 of the variance")
    colors = {norm: color for norm, (color, _) in looks.items()}
    plot_losses(panels["loss"], {cell: each(results, key(*cell), "loss") for cell in CELLS}, colors, markers)
    lines = [Line2D([], [], color=color, linestyle=style) for color, style in looks.values()]
    lines += [Line2D([], [], color="black", linestyle="", marker=marker) for marker in markers.values()]
    names = [*map(named, NORMS), *(f"weights of variance {variance}/n" for variance in VARIANCES)]
    figure.legend(lines, names, loc="outside lower center", ncols=2)
    return figure


def plot_losses(panel, losses, colors, markers):
    """Draws {cell: its losses}; runs that diverged lie in a row of their own, above all others."""
    guessing = math.log(10)
    finite = [10**loss for values in losses.values() for loss in values if not diverged(loss)]
    lowest, highest = min([guessing, *finite]), max([guessing, *finite])
    above = highest + 0.2 * max(highest - lowest, 0.1)
    for place, ((norm, variance), values) in enumerate(losses.items()):
        shown = [above if diverged(loss) else 10**loss for loss in values]
        among_others = 0 < shown.count(above) < len(shown)  # which leaves no mean
        look = dict(color=colors[norm], marker=markers[variance], mean=not among_others)
        drawing.dots(panel, place, shown, **look)
    panel.axhline(guessing, color="black", linestyle=":", linewidth=1)
    names = [f"{variance}/n" + f"\n{named(norm)}" * (variance == VARIANCES[1]) for norm, variance in losses]
    panel.set_xticks(range(len(losses)), names)
    round_ones = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(lowest, highest)
    ticks = {tick: f"{tick:.3g}" for tick in round_ones if tick <= highest}
    if max(map(diverged, itertools.chain(*losses.values()))):
        ticks[above] = "diverged"
    panel.set_yticks([*ticks], [*ticks.values()])
    meaning = f"diverged: a loss was not finite, or above {LARGEST_LOSS:,.0f}; dotted: guessing"
    panel.set(ylabel="training loss (nats)", title=f"after {STEPS} steps; {meaning}")
