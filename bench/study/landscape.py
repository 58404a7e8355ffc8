"""The loss and its gradient along the gradient step, with BatchNorm and without."""

import math
import statistics

import torch
import torch.nn.functional as F

from . import drawing
from .data import split
from .experiment import LARGEST_LOSS, each, exceeds, held, mean_and_deviation, named, steps
from .training import batches, network

TITLE = "BatchNorm and the landscape of the loss"
WIDTH, HIDDEN, STEPS, RATE, BATCH, EVERY = 128, 6, 150, 0.1, 128, 5
DISTANCES = (0.05, 0.1, 0.2, 0.3, 0.4)  # in units of the gradient
NORMS = ("none", "BatchNorm")
QUANTITIES = {
    "range": "variation of the loss: largest minus smallest along the step",
    "predictiveness": "change of the gradient: largest distance from it along the step",
    "smoothness": "effective smoothness: largest change of the gradient over the distance gone",
    "relative": "relative change of the gradient: that distance over the gradient's norm",
}
SETUP = f"""\
A network of {HIDDEN} hidden layers of {WIDTH} units learns the digits by {STEPS} steps of SGD (rate
{RATE}, batches of {BATCH}), with BatchNorm and without. Before every {EVERY}th step, loss and gradient
of the batch are computed at {", ".join(map(str, DISTANCES))} times the gradient away from where the
weights are, downhill, as Santurkar et al. (2018, arXiv 1805.11604) do. Every quantity is averaged as
log10 over the training."""


def loss_and_gradient(model, x, labels):
    parameters = [*model.parameters()]
    loss = F.cross_entropy(model(x), labels)
    return loss.item(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def along_the_step(model, x, labels):
    """The QUANTITIES at the model's weights, which it changes meanwhile and puts back."""
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    loss, gradient = loss_and_gradient(model, x, labels)
    losses, changes = [loss], []
    for distance in DISTANCES:
        torch.nn.utils.vector_to_parameters(weights - distance * gradient, model.parameters())
        there, gradient_there = loss_and_gradient(model, x, labels)
        losses.append(there)
        changes.append((gradient_there - gradient).norm().item())
    torch.nn.utils.vector_to_parameters(weights, model.parameters())
    norm = max(gradient.norm().item(), 1e-12)
    smoothness = max(change / (distance * norm) for change, distance in zip(changes, DISTANCES))
    values = (max(losses) - min(losses), max(changes), smoothness, max(changes) / norm)
    return {name: logarithm(value) for name, value in zip(QUANTITIES, values)}


def logarithm(value):
    return (
        math.log10(min(max(value, 1e-12), LARGEST_LOSS)) if math.isfinite(value) else math.log10(LARGEST_LOSS)
    )


def run(seed, quick):
    data, _ = split("digits", seed, 1297)
    found = {}
    for norm in NORMS:
        torch.manual_seed(seed)
        model = network([64, *[WIDTH] * HIDDEN, 10], norm)
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        measured, losses = [], []
        for step, (x, labels) in enumerate(batches(data, BATCH, steps(STEPS, quick), seed)):
            if step % EVERY == 0:
                measured.append(along_the_step(model, x, labels))
            loss = F.cross_entropy(model(x), labels)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[norm] = dict(
            {name: [one[name] for one in measured] for name in QUANTITIES}, loss=losses[::EVERY]
        )
    return found


def average(results, norm, name):
    return [statistics.mean(values) for values in each(results, norm, name)]


CLAIMS = {
    "range": "With BatchNorm the loss varies less along the gradient step.",
    "predictiveness": "With BatchNorm the gradient changes less along the step.",
    "smoothness": "With BatchNorm the loss is smoother: its gradient changes less for the distance gone.",
    "relative": "With BatchNorm the gradient changes less along the step, relative to its norm.",
}


def verdicts(results):
    found = []
    for name, claim in CLAIMS.items():
        without, with_norm = (average(results, norm, name) for norm in NORMS)
        what = f"log10 of the {QUANTITIES[name].split(':')[0]}, without to with"
        found.append(exceeds(claim, without, with_norm, what))
    return found


def tables(results):
    rows = [
        (QUANTITIES[name], *(mean_and_deviation(average(results, norm, name)) for norm in NORMS))
        for name in QUANTITIES
    ]
    last = (mean_and_deviation([values[-1] for values in each(results, norm, "loss")]) for norm in NORMS)
    rows.append(("loss of the last batch measured (not log10)", *last))
    return [("log10, averaged over the training.", ("quantity", *map(named, NORMS)), rows)]


def finding(verdicts):
    smoother = len(held(verdicts, CLAIMS))
    number = f"all {len(CLAIMS)}" if smoother == len(CLAIMS) else f"{smoother} of {len(CLAIMS)}"
    return (
        f"Along the gradient step the loss is smoother with BatchNorm than without, by {number} measures, "
        "averaged over the training"
    )


def plot(results):
    cells = [*QUANTITIES]
    figure, panels = drawing.mosaic([cells[:2], cells[2:]], height=6.4, sharex=True)
    labels = (
        "log10 of the loss's range (nats)",
        "log10 of the gradient's change",
        "log10 of change / distance",
        "log10 of change / gradient",
    )
    for (name, what), label in zip(QUANTITIES.items(), labels):
        for norm, color, style, marker in zip(NORMS, drawing.COLORS, ("-", "--"), drawing.MARKERS):
            runs = each(results, norm, name)
            places = range(0, EVERY * len(runs[0]), EVERY)
            look = dict(color=color, linestyle=style, marker=marker, markevery=4)
            drawing.band(panels[name], places, runs, label=named(norm), **look)
        panels[name].set(ylabel=label, title=what.split(":")[0])
    for name in cells[2:]:
        panels[name].set_xlabel("training step")
    handles = panels["range"].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, title="mean and deviation of the seeds")
    return figure
