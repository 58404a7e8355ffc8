"""Compares the runs of torch.nn and normreg: differences, accuracies, kernels launched and cost.

Each `show_` function prints a table and returns whether the check in it passed.
"""

import copy
import itertools
import math
import statistics
from unittest import mock

import torch
from rich import box
from rich.table import Table

from bench.demo import DEVICE
from bench.demo.training import BATCH, COMPARED, DROPOUT, Run, batch_of
from normreg.kernels import launch

# Two results that are each as exact as torch.nn's differ by at most twice its error. Allowed is four times
# that, because the largest error of a single run is a matter of chance.
ROUNDING_FACTOR = 8
LARGEST_BOUND = 1e-3  # a comparison with a looser bound would show nothing
STANDARD_ERRORS = 3
AVERAGED_STEPS = 10  # about one pass over the training images
WARM_UP_STEPS, TIMED_STEPS = 10, 30
TIMED_BATCHES = (BATCH, 4096)  # the first leaves a GPU idle


def show(console, headers, rows, caption):
    """Prints a table and its caption; all columns but the first are numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(f"{caption}\n")


def show_differences(console, runs, test):
    """Whether normreg's run differs from torch.nn's by rounding only."""
    original, replaced, exact = (runs[name].observations(test[0]) for name in (*COMPARED, "float64"))
    rows, passed = [], True
    for quantity, expected in original.items():
        difference = (replaced[quantity] - expected).abs().max().item()
        rounding = (exact[quantity] - expected).abs().max().item()
        bound = min(ROUNDING_FACTOR * rounding, LARGEST_BOUND)
        within = difference <= bound
        passed &= within
        cells = (f"{value:.1e}" for value in (difference, rounding, bound))
        rows.append((quantity, *cells, "yes" if within else "NO"))
    headers = "normreg to\ntorch.nn", "torch.nn to\nfloat64", "\nbound", "within\nrounding"
    caption = (
        f"bound: {ROUNDING_FACTOR} times the difference of torch.nn to float64, at most {LARGEST_BOUND:g}"
    )
    show(console, ("dropout off,\nlargest difference of", *headers), rows, caption)
    return passed


def show_results(console, runs_by_dropout, test):
    """Whether the test accuracies with and without normreg agree within noise."""
    rows, passed = [], True
    images, labels = test
    for dropout, runs in runs_by_dropout.items():
        accuracies = []
        for name in COMPARED:
            accuracies.append((runs[name].test(images).argmax(1) == labels).double().mean().item())
            loss = torch.stack(runs[name].losses[-AVERAGED_STEPS:]).mean()
            rows.append([f"{name}, dropout {dropout or 'off'}", f"{loss:.4f}", f"{accuracies[-1]:.1%}"])
        p = statistics.mean(accuracies)
        noise = STANDARD_ERRORS * math.sqrt(2 * p * (1 - p) / len(labels))
        difference = abs(accuracies[1] - accuracies[0])
        within = difference <= noise
        passed &= within
        rows[-1] += [f"{difference:.1%}", f"{noise:.1%}", "yes" if within else "NO"]
    headers = "final\nloss", "test\naccuracy", "\ndifference", "\nnoise", "within\nnoise"
    caption = (
        f"final loss: mean of the last {AVERAGED_STEPS} steps\n"
        f"noise: {STANDARD_ERRORS} standard errors of the difference, on {len(labels)} test images"
    )
    show(console, ("", *headers), rows, caption)
    return passed


def kernel_launches(model, data):
    """The numbers of normreg's kernels that a training step and an evaluation launch."""
    run = Run(copy.deepcopy(model))
    with mock.patch.object(launch, "launch", wraps=launch.launch) as launched:
        run.step(*batch_of(BATCH, data))
        training = launched.call_count
        run.test(data[0])
    return training, launched.call_count - training


def step_cost(model, images, labels):
    """Mean time and peak memory of a training step, weights and optimizer included."""
    before = torch.cuda.memory_allocated()
    run = Run(copy.deepcopy(model))
    for _ in range(WARM_UP_STEPS):
        run.step(images, labels)
    torch.cuda.reset_peak_memory_stats()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(TIMED_STEPS):
        run.step(images, labels)
    end.record()
    torch.cuda.synchronize()
    memory = torch.cuda.max_memory_allocated() - before
    return f"{start.elapsed_time(end) / TIMED_STEPS:.2f} ms", f"{memory / 2**20:,.1f} MiB"


def show_cost(console, runs, data):
    """Whether normreg's kernels run, in training and in evaluation."""
    training, evaluation = kernel_launches(runs["normreg"].model, data)
    caption = f"normreg's kernels launched: {training} a training step, {evaluation} an evaluation"
    if DEVICE == "cuda":
        rows = [
            (f"{name}, batch of {size:,}", *step_cost(runs[name].model, *batch_of(size, data)))
            for size, name in itertools.product(TIMED_BATCHES, COMPARED)
        ]
        show(console, (f"dropout {DROPOUT}", "time per step", "peak memory"), rows, caption)
    else:
        console.print(f"{caption}\ntime per step and peak memory: not measured, because there is no GPU\n")
    return training > 0 and evaluation > 0
