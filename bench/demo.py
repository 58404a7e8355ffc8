"""Trains two torch.nn models side by side with the same two on normreg's layers, and compares them.

A convolutional network (BatchNorm2d, Dropout) and an nn.TransformerEncoder classifier (LayerNorm, Dropout)
learn the 1,797 handwritten digits that scikit-learn ships, each from the same weights and on the same
batches as its copy after `normreg.replace`.

Dropout off, the two may differ by rounding only. What rounding is worth is measured: a third copy trains in
float64, and torch.nn's own distance from that is the yardstick. Both networks use GELU because it is smooth:
across the kink of a ReLU a rounding difference becomes a jump. Dropout on, the masks differ, and the test
accuracies must agree within the noise of a test set of that size. The exit status is 1 where they do not.

    python -m bench.demo [--quick] [--seed N] [--output demo.png]
"""

import argparse
import copy
import functools
import itertools
import math
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are defined, so set before normreg is imported

import normreg
from bench.lab import interpreter
from normreg.kernels import launch

try:
    from matplotlib.figure import Figure
    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress
    from rich.table import Table
    from sklearn.datasets import load_digits
except ModuleNotFoundError as error:
    print(f"bench.demo needs {error.name}, not installed here: pip install -e '.[bench]'", file=sys.stderr)
    sys.exit(2)

DEVICE = "cpu" if launch.INTERPRET else "cuda"
COMPARED = ("torch.nn", "normreg")
DROPOUT = 0.1
TEST_IMAGES = 500
# Results that are each as exact as torch.nn's are at most twice its error apart. Four times that, because
# the largest error of a single run is a matter of chance.
ROUNDING_FACTOR = 8
LARGEST_BOUND = 1e-3  # a training that amplifies rounding further would show nothing
STANDARD_ERRORS = 3
AVERAGED_STEPS = 10  # about one pass over the training images
WARM_UP_STEPS, TIMED_STEPS = 10, 30
BATCH = 128
TIMED_BATCHES = (BATCH, 4096)  # the first leaves a GPU idle


@dataclass(frozen=True)
class Size:
    channels: int
    width: int
    layers: int
    learning_rate: float
    steps: int


SIZES = {
    # (device, quick); a program costs the interpreter milliseconds, so there few layers and few steps
    ("cpu", False): Size(channels=16, width=64, layers=2, learning_rate=3e-3, steps=50),
    ("cpu", True): Size(channels=16, width=64, layers=1, learning_rate=3e-3, steps=20),
    ("cuda", False): Size(channels=64, width=256, layers=4, learning_rate=3e-4, steps=200),
    ("cuda", True): Size(channels=64, width=256, layers=4, learning_rate=3e-4, steps=60),
}


def convolutional_network(size, dropout):
    channels = size.channels
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * channels),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(2 * channels * 4 * 4, 10),
    )


class TransformerClassifier(nn.Module):
    """Reads a digit as the sequence of its 8 rows. Attention's own dropout is no layer and stays torch's."""

    def __init__(self, size, dropout):
        super().__init__()
        width = size.width
        options = dict(activation="gelu", batch_first=True, norm_first=True)
        layer = nn.TransformerEncoderLayer(width, 4, width, dropout, **options)
        self.embedding = nn.Linear(8, width)
        self.position = nn.Parameter(0.1 * torch.randn(8, width))
        norm = nn.LayerNorm(width)
        self.encoder = nn.TransformerEncoder(layer, size.layers, norm, enable_nested_tensor=False)
        self.head = nn.Linear(8 * width, 10)

    def forward(self, images):
        rows = self.embedding(images.squeeze(1)) + self.position
        return self.head(self.encoder(rows).flatten(1))


NETWORKS = {"Convolutional network": convolutional_network, "Transformer encoder": TransformerClassifier}


def digits(seed):
    """(images, labels) to train on and to test on."""
    loaded = load_digits()
    order = torch.randperm(len(loaded.target), generator=torch.Generator().manual_seed(seed))
    images = (torch.tensor(loaded.images, dtype=torch.float32)[order, None] / 16).to(DEVICE)
    labels = torch.tensor(loaded.target)[order].to(DEVICE)
    return (images[TEST_IMAGES:], labels[TEST_IMAGES:]), (images[:TEST_IMAGES], labels[:TEST_IMAGES])


def batch_of(size, data):
    """The first images and labels, from the start again where there are too few."""
    return tuple(tensor[torch.arange(size, device=DEVICE) % len(tensor)] for tensor in data)


def flat(tensors):
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


class Run:
    """A model in training: its losses so far, and the outputs and gradients of its first step."""

    def __init__(self, model, learning_rate=0.0):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
        self.dtype = next(model.parameters()).dtype
        self.losses = []
        self.first = {}

    def step(self, images, labels):
        self.model.train()
        outputs = self.model(images.to(self.dtype))
        loss = F.cross_entropy(outputs, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.detach())
        return outputs.detach()

    @torch.no_grad()
    def test(self, images):
        self.model.eval()
        return self.model(images.to(self.dtype))

    def observations(self, images):
        """What is compared between runs: flat float64 tensors by name."""
        observed = self.first | {
            "losses of all steps": flat(self.losses),
            "test outputs at the end": flat([self.test(images)]),
        }
        if buffers := list(self.model.buffers()):
            observed["running statistics at the end"] = flat(buffers)
        return observed


def train(models, data, size, seed, advance):
    """The runs of all models, by name, over the same batches."""
    runs = {name: Run(model, size.learning_rate) for name, model in models.items()}
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    for step in range(size.steps):
        chosen = torch.randperm(len(images), generator=generator)[:BATCH].to(DEVICE)
        for run in runs.values():
            outputs = run.step(images[chosen], labels[chosen])
            if step == 0:
                gradients = [parameter.grad for parameter in run.model.parameters()]
                run.first = {"outputs, first step": flat([outputs]), "gradients, first step": flat(gradients)}
        advance(losses=", ".join(f"{name} {runs[name].losses[-1]:.3f}" for name in COMPARED))
    return runs


def train_all(data, size, seed, console):
    """{network: {dropout probability: runs}} and {network: table of what was replaced}."""
    runs, reports = {network: {} for network in NETWORKS}, {}
    columns = ("{task.description}", BarColumn(20), MofNCompleteColumn(), "{task.fields[losses]}")
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=2 * len(NETWORKS) * size.steps, losses="")
        for network, dropout in itertools.product(NETWORKS, (0.0, DROPOUT)):
            torch.manual_seed(seed)
            original = NETWORKS[network](size, dropout).to(DEVICE)
            models = {"torch.nn": original, "normreg": copy.deepcopy(original)}
            reports[network] = normreg.replace(models["normreg"])
            if not dropout:
                models["float64"] = copy.deepcopy(original).double()
            progress.update(bar, description=f"{network}, dropout {dropout or 'off'}")
            advance = functools.partial(progress.update, bar, advance=1)
            runs[network][dropout] = train(models, data, size, seed, advance)
        progress.update(bar, description="Trained", losses="")
    return runs, reports


def show(console, headers, rows, caption):
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
    """How many of normreg's kernels a training step and an evaluation launch."""
    run = Run(copy.deepcopy(model))
    with mock.patch.object(launch, "launch", wraps=launch.launch) as launched:
        run.step(*batch_of(BATCH, data))
        training = launched.call_count
        run.test(data[0])
    return training, launched.call_count - training


def step_cost(model, images, labels):
    """Mean time of a training step, and memory at its peak, weights and optimizer included."""
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
    rows = []
    for size, name in itertools.product(TIMED_BATCHES if DEVICE == "cuda" else (BATCH,), COMPARED):
        cost = "not measured", "not measured"
        if DEVICE == "cuda":
            cost = step_cost(runs[name].model, *batch_of(size, data))
        rows.append((f"{name}, batch of {size:,}", *cost))
    training, evaluation = kernel_launches(runs["normreg"].model, data)
    caption = f"normreg's kernels launched: {training} a training step, {evaluation} an evaluation"
    show(console, (f"dropout {DROPOUT}", "time per step", "peak memory"), rows, caption)
    return training > 0 and evaluation > 0


def plot(path, curves):
    """The loss curves: {network: {dropout: runs}}."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle("Training loss on handwritten digits: torch.nn layers and normreg layers")
    styles = {"torch.nn": dict(linewidth=5, alpha=0.35), "normreg": dict(linewidth=1.5, linestyle="--")}
    panels = figure.subplots(1, len(curves), sharey=True)
    for panel, (network, runs_by_dropout) in zip(panels, curves.items()):
        for (dropout, runs), color in zip(runs_by_dropout.items(), ("tab:blue", "tab:orange")):
            for name, style in styles.items():
                losses = torch.stack(runs[name].losses).cpu()
                label = f"{name}, dropout {dropout or 'off'}"
                panel.plot(range(1, len(losses) + 1), losses, color=color, label=label, **style)
        panel.set(title=network, xlabel="training step", yscale="log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.3)
        panel.legend()
    panels[0].set_ylabel("cross-entropy of the batch")
    figure.savefig(path, dpi=120)


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, and without a GPU fewer layers")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and masks (default 0)")
    parser.add_argument("--output", type=Path, default="demo.png", help="the plot (default demo.png)")
    arguments = parser.parse_args()
    if not arguments.output.parent.is_dir():
        parser.error(f"--output: there is no folder {arguments.output.parent}")
    return arguments


def main():
    arguments = parse_arguments()
    size = SIZES[DEVICE, arguments.quick]
    console = Console(highlight=False)
    torch.backends.cudnn.allow_tf32 = False  # its rounding would hide every other
    torch.backends.mha.set_fastpath_enabled(False)  # in evaluation it bypasses the layers, torch's and ours
    if DEVICE == "cuda":
        console.print(f"On {torch.cuda.get_device_name()}.")
    else:
        interpreter.patch_language_once()
        torch.set_num_threads(1)  # the interpreter has one; where cores are busy, more wait for each other
        reason = "TRITON_INTERPRET is set" if torch.cuda.is_available() else "No GPU was found"
        console.print(f"{reason}: the kernels run in Triton's interpreter, on the CPU.")
        console.print("That says nothing about their speed, so timings are not measured.")
    data, test = digits(arguments.seed)
    console.print(f"Handwritten digits: {len(data[1]):,} to train on, {len(test[1]):,} to test on.\n")

    runs, reports = train_all(data, size, arguments.seed, console)
    passed = True
    for network in NETWORKS:
        console.rule(network)
        print(f"{reports[network]}\n")
        passed &= show_differences(console, runs[network][0.0], test)
        passed &= show_results(console, runs[network], test)
        passed &= show_cost(console, runs[network][DROPOUT], data)
    plot(arguments.output, runs)
    console.print(f"Loss curves: {arguments.output}")
    console.print("All checks passed." if passed else "CHECKS FAILED: see above.")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
