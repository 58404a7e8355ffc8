"""Command line of the demo: trains, compares and plots."""

import argparse
import sys
from pathlib import Path

from bench import demo
from bench.demo import DEVICE
from bench.harness.requirements import imports_of

with imports_of("bench.demo"):
    import torch
    from matplotlib.figure import Figure
    from rich.console import Console

    from bench.demo import comparisons
    from bench.demo.networks import NETWORKS, SIZES, digits
    from bench.demo.training import DROPOUT, train_all
    from bench.harness import pictures
    from bench.lab import interpreter


def plot(path, curves, passed):
    """Draws the loss curves of {network: {dropout: runs}}."""
    with pictures.styled():
        figure = Figure(figsize=(pictures.WIDTH, 4.2))
        panels = figure.subplots(1, len(curves), sharey=True)
        styles = {"torch.nn": dict(linewidth=5, alpha=0.35), "normreg": dict(linestyle="--")}
        for panel, (network, runs_by_dropout) in zip(panels, curves.items()):
            for (dropout, runs), color in zip(runs_by_dropout.items(), pictures.COLORS):
                for name, style in styles.items():
                    losses = torch.stack(runs[name].losses).cpu()
                    label = f"{name}, dropout {dropout or 'off'}"
                    panel.plot(range(1, len(losses) + 1), losses, color=color, label=label, **style)
            panel.set(title=network, xlabel="training step", yscale="log")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("{x:g}")
        panels[0].set_ylabel("cross-entropy of the batch")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        same = "follows" if passed else "does not follow"
        pictures.title(figure, f"The training loss with normreg's layers {same} that with torch.nn's.")
        pictures.save(figure, path)


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m bench demo",
        description=demo.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps, and without a GPU fewer layers")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of weights, batches and masks (default: 0)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default="demo.png",
        metavar="FILE",
        help="picture of the loss curves to write (default: demo.png)",
    )
    parsed = parser.parse_args(arguments)
    if not parsed.output.parent.is_dir():
        parser.error(f"--output: there is no folder {parsed.output.parent}")
    return parsed


def main(arguments=None):
    arguments = parse_arguments(arguments)
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

    runs, reports = train_all(data, size, arguments.seed)
    passed = True
    for network in NETWORKS:
        console.rule(network)
        print(f"{reports[network]}\n")
        passed &= comparisons.show_differences(console, runs[network][0.0], test)
        passed &= comparisons.show_results(console, runs[network], test)
        passed &= comparisons.show_cost(console, runs[network][DROPOUT], data)
    plot(arguments.output, runs, passed)
    console.print(f"Loss curves: {arguments.output}")
    console.print("All checks passed." if passed else "CHECKS FAILED: see above.")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
