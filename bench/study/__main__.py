"""Runs the experiments of bench/study and writes their results, figures and page.

A task is an experiment with a seed. It runs in one thread, so results depend neither on --workers
nor on the order of tasks. `--page` only draws and writes the page from the results that are there.
"""

import argparse
import os
import sys
import textwrap
import time
from pathlib import Path

from bench.harness.requirements import imports_of

with imports_of("bench.study"):
    from bench.harness import result_files, tables
    from bench.harness.budget import Budget, in_processes
    from bench.study import NAMES, by_name, page
    from bench.study.experiment import listed
    from bench.study.tasks import run_task
    from bench.study.training import normreg, torch

FOLDER = Path(__file__).parent
QUICK_FOLDER = Path("build/study")  # of results that mean nothing
SEEDS, QUICK_SEEDS = 5, 2
FIRST_SEED = 20  # earlier ones served to try the experiments out


def path_taken():
    """Says what computes normreg's layers here."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    (call,) = normreg.explain(normreg.BatchNorm1d(4).to(device), torch.randn(8, 4, device=device))
    return "its own kernels" if call.path == "kernel" else f"torch's operators ({call.why})"


def run_all(names, seeds, quick, workers):
    """Runs all tasks; yields (experiment, {seed: results}, {seed: seconds}) as experiments are done."""
    given = [(name, seed, quick) for name in names for seed in seeds]
    done = in_processes(Budget(), given, run_task, processes=workers, describe=described)
    results, seconds = {}, {}
    for (name, seed, _), (found, taken) in zip(given, done, strict=True):
        results[str(seed)], seconds[str(seed)] = found, round(taken, 1)
        if seed == seeds[-1]:
            yield name, results, seconds
            results, seconds = {}, {}


def described(task):
    name, seed, _ = task
    return f"{name}, seed {seed}"


def say(text):
    """Prints a text in lines of the width of tables, the later ones indented."""
    print(textwrap.fill(text, tables.WIDTH, subsequent_indent="    ", break_on_hyphens=False))


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m bench study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_SEEDS} seeds and hardly any steps, to see that all runs: the numbers mean nothing",
    )
    parser.add_argument(
        "--seeds", type=int, metavar="N", help=f"how many seeds, from {FIRST_SEED} on (default: {SEEDS})"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=NAMES,
        default=NAMES,
        help=f"only these experiments (default: {' '.join(NAMES)})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"folder of results, figures and page (default: bench/study; with --quick {QUICK_FOLDER})",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        default=min(2, os.cpu_count() or 1),
        help="processes that run side by side (default: 2)",
    )
    parser.add_argument(
        "--page", action="store_true", help="run nothing: draw and write from the results in DIR"
    )
    parsed = parser.parse_args(arguments)
    parsed.out = parsed.out or (QUICK_FOLDER if parsed.quick else FOLDER)
    parsed.seeds = parsed.seeds or (QUICK_SEEDS if parsed.quick else SEEDS)
    if parsed.seeds < 2:
        parser.error(f"--seeds: expected at least 2, for a deviation, got {parsed.seeds}")
    if parsed.workers < 1:
        parser.error(f"--workers: expected at least 1, got {parsed.workers}")
    if parsed.quick and parsed.out.resolve() == FOLDER:
        parser.error(
            "--quick: its numbers mean nothing, and would replace those of bench/study: leave --out out"
        )
    return parsed


def main(arguments=None):
    arguments = parse_arguments(arguments)
    if not arguments.page:
        begin = time.monotonic()
        environment, taken = result_files.environment(), path_taken()
        say(f"{len(arguments.only)} experiments, {arguments.seeds} seeds; normreg's layers: {taken}.")
        seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
        done = run_all(arguments.only, seeds, arguments.quick, arguments.workers)
        for name, results, seconds in done:
            found = dict(environment=environment, path=taken, quick=arguments.quick)
            found |= dict(seconds=seconds, results=results)
            result_files.write_json(arguments.out / f"{name}.json", found)
        print(f"{time.monotonic() - begin:.0f} seconds.")
    loaded = page.load(arguments.out)
    for name, found in page.verdicts(loaded).items():
        print(f"\n{by_name(name).TITLE}")
        for verdict in found:
            say(f"  {verdict.outcome}: {verdict.claim} {verdict.evidence}")
    print()
    for path in page.write(arguments.out):
        print(f"written: {path}")
    if quick := [name for name, found in loaded.items() if found["quick"]]:
        say(f"These numbers mean nothing: with --quick, {listed(quick)} took hardly any steps.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
