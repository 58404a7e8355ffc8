"""BatchNorm on corrupted digits with running averages, statistics of the test batch, recalibrated ones."""

import copy
import statistics

import torch
from torch.optim.swa_utils import update_bn

import normreg

from . import drawing
from .data import CORRUPTIONS, DEVICE, SEVERITIES, corrupted, images
from .experiment import (
    HELD,
    OPPOSITE,
    each,
    exceeds,
    held,
    listed,
    mean_and_deviation,
    outcomes,
    steps,
)
from .training import evaluate, train

TITLE = "BatchNorm under shift"
TRAIN, TEST, STEPS, RATE, CHANNELS = 797, 500, 200, 3e-3, 16
QUICK_TEST = 40
NEAR = 0.01  # accuracy of a curve from that of batches, if they coincide in the picture
LARGE, SMALL = 100, 4  # images in a test batch
SHIFTED = (3, 4, 5)
RUNNING, RECALIBRATED, WITHOUT = "running averages", "recalibrated", "without BatchNorm"
BATCH, FEW = f"batches of {LARGE}", f"batches of {SMALL}"
METHODS = (RUNNING, BATCH, FEW, RECALIBRATED, WITHOUT)
SETUP = f"""\
A convolutional network (two convolutions of {CHANNELS} and {2 * CHANNELS} channels, each with BatchNorm
and ReLU, and a linear layer) learns {TRAIN} clean digits, {STEPS} steps of Adam (rate {RATE}, batches of
64); so does the same network without BatchNorm. Then {TEST} other digits are corrupted in five ways
({", ".join(CORRUPTIONS)}), at severities of 1 to 5, and classified with the running averages of the
training; with the statistics of the test batch itself, of {LARGE} or of {SMALL} images (the layers'
`track_running_stats` switched off); and with running averages that `torch.optim.swa_utils.update_bn` has
computed anew, without labels, from the remaining 500 digits under the same corruption. "Shifted" is the
mean over the five corruptions at severities {SHIFTED[0]} to {SHIFTED[-1]}."""


def convolutional_network(norm):
    def block(inputs, outputs, stride):
        layers = [torch.nn.Conv2d(inputs, outputs, 3, stride, padding=1)]
        return [*layers, *([normreg.BatchNorm2d(outputs)] if norm else []), torch.nn.ReLU()]

    head = torch.nn.Linear(2 * CHANNELS * 16, 10)
    layers = (*block(1, CHANNELS, 1), *block(CHANNELS, 2 * CHANNELS, 2), torch.nn.Flatten(), head)
    model = torch.nn.Sequential(*layers).to(DEVICE)
    normreg.init.kaiming_(model)
    return model


def with_batch_statistics(model):
    """A copy as if built with track_running_stats=False, which also evaluates with its batch's statistics."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, normreg.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def recalibrated(model, x):
    model = copy.deepcopy(model)
    update_bn(x.split(LARGE), model)
    return model


def accuracy(model, x, labels, batch):
    parts = zip(x.split(batch), labels.split(batch))
    return statistics.mean(evaluate(model, part)[1] for part in parts)


def run(seed, quick):
    data, (x, labels) = images(seed, TRAIN)
    tested = QUICK_TEST if quick else TEST
    test, others, labels = x[:tested], x[TEST:], labels[:tested]
    models = {}
    for norm in (True, False):
        torch.manual_seed(seed)
        models[norm] = convolutional_network(norm)
        train(
            models[norm], torch.optim.Adam(models[norm].parameters(), RATE), data, steps(STEPS, quick), seed
        )
    found = {}
    for corruption in CORRUPTIONS:
        found[corruption] = {method: [] for method in METHODS}
        for severity in (0, *SEVERITIES):
            given = corrupted(test, corruption, severity, seed)
            others_given = corrupted(others, corruption, severity, seed + 1)
            by_batch = with_batch_statistics(models[True])
            for method, model, batch in (
                (RUNNING, models[True], TEST),
                (BATCH, by_batch, LARGE),
                (FEW, by_batch, SMALL),
                (RECALIBRATED, recalibrated(models[True], others_given), TEST),
                (WITHOUT, models[False], TEST),
            ):
                found[corruption][method].append(accuracy(model, given, labels, batch))
    return found


def clean(results, method):
    return [values[0] for values in each(results, next(iter(CORRUPTIONS)), method)]


def shifted(results, method):
    return [
        statistics.mean(
            seed[corruption][method][severity] for corruption in CORRUPTIONS for severity in SHIFTED
        )
        for seed in results.values()
    ]


def verdicts(results):
    what = "accuracy, shifted"
    of, before = ({method: f(results, method) for method in METHODS} for f in (shifted, clean))
    costs = "Shift costs a network with running averages accuracy."
    robust = "With running averages, BatchNorm is more robust to shift than none."
    claims = (
        (costs, before[RUNNING], of[RUNNING], "accuracy, clean to shifted"),
        (f"Under shift, test {BATCH} beat running averages.", of[BATCH], of[RUNNING], what),
        ("Under shift, recalibrated statistics beat running averages.", of[RECALIBRATED], of[RUNNING], what),
        (f"Under shift, recalibrated statistics beat test {BATCH}.", of[RECALIBRATED], of[BATCH], what),
        (f"Without shift, test {FEW} cost accuracy.", before[RUNNING], before[FEW], "accuracy, clean"),
        (robust, of[RUNNING], of[WITHOUT], what),
    )
    return [exceeds(*claim) for claim in claims]


def tables(results):
    headers = ("statistics", "clean", "shifted", *(f"{name}, 5" for name in CORRUPTIONS))
    rows = [
        (
            method,
            mean_and_deviation(clean(results, method)),
            mean_and_deviation(shifted(results, method)),
            *(mean_and_deviation([v[5] for v in each(results, name, method)]) for name in CORRUPTIONS),
        )
        for method in METHODS
    ]
    return [("Accuracy; in the last columns at severity 5.", headers, rows)]


def finding(verdicts):
    better = {
        f"test {BATCH}": f"Under shift, test {BATCH} beat running averages.",
        "recalibrated statistics": "Under shift, recalibrated statistics beat running averages.",
    }
    robust = outcomes(verdicts)["With running averages, BatchNorm is more robust to shift than none."]
    compared = {HELD: "more", OPPOSITE: "less"}.get(robust, "not surely more")
    return (
        f"Under shift, {listed(held(verdicts, better), 'no other statistics')} beat running averages, with "
        f"which BatchNorm is {compared} robust than no norm"
    )


def coinciding(results):
    """The methods whose mean accuracies are nearly those of batches, under each corruption and severity."""
    means = {
        method: [
            statistics.mean(values)
            for corruption in CORRUPTIONS
            for values in zip(*each(results, corruption, method), strict=True)
        ]
        for method in METHODS
    }
    return [
        method
        for method, of in means.items()
        if max(abs(a - b) for a, b in zip(of, means[BATCH], strict=True)) <= NEAR
    ]


def plot(results):
    cells = [*CORRUPTIONS, "legend"]
    figure, panels = drawing.mosaic([cells[:2], cells[2:4], cells[4:]], height=8.4, sharex=True, sharey=True)
    for corruption in CORRUPTIONS:
        panel = panels[corruption]
        for i, (method, color, marker) in enumerate(zip(METHODS, drawing.COLORS, drawing.MARKERS)):
            look = dict(color=color, marker=marker, label=method)
            drawing.bars(
                panel, (0, *SEVERITIES), each(results, corruption, method), shift=0.13 * (i - 2), **look
            )
        panel.set(title=corruption, xlabel="severity", ylabel="accuracy")
        panel.set_xticks((0, *SEVERITIES))
        panel.tick_params(labelbottom=True, labelleft=True)
    panels["legend"].set_axis_off()
    handles = panels[cells[0]].get_legend_handles_labels()
    words = "mean and deviation of the seeds"
    if len(same := coinciding(results)) > 1:
        others = listed([method for method in same if method != BATCH])
        words += f"\n{others}:\nwithin {NEAR} of {BATCH}"
    panels["legend"].legend(*handles, loc="center", title=words)
    return figure
