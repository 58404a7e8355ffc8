"""Writes tables and plots from the committed results into README and into a report of each machine.

Results lie in bench/results/<machine>/<part>/<operation>.json, where `--out bench/results/<machine>` writes.
An archive of such folders, as `make gpu` makes it, is unpacked there first. A machine with results of a GPU
(`speed`, `models`, `smoke`, `tests`) gets a report.md and its plots beside them.
"""

import sys
from pathlib import Path

from bench import ROOT
from bench.gpu_pass import archive
from bench.report import classes, layers, machine_page, places, results


def add_arguments(parser):
    parser.add_argument(
        "archive", nargs="?", type=Path, metavar="results.tgz", help="a GPU's results, unpacked first"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "bench/results",
        help="default: bench/results",
    )
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="default: README.md")


def fill(readme, section, begin, end):
    """Replaces the text between two marks of README."""
    text = readme.read_text()
    if text.count(begin) != 1 or text.count(end) != 1:
        sys.exit(f"{readme}: expected the lines {begin!r} and {end!r}, once each; put them where results go")
    before, rest = text.split(begin)
    readme.write_text(f"{before}{begin}\n{section}{end}{rest.split(end)[1]}")


def run(arguments):
    if arguments.archive is not None:
        for path in archive.unpack(arguments.archive, arguments.results):
            print(f"unpacked: {path}")
    machines = sorted(arguments.results.iterdir()) if arguments.results.is_dir() else []
    for machine in machines:
        if machine_page.was_on_a_gpu(machine):
            print(f"written: {machine_page.write(machine)}")
        if machine_page.runs_of("exactness", [machine]):
            print(f"written: {machine_page.write_exactness(machine)}, with plots")
        if machine_page.runs_of("instructions", [machine]):
            path = machine / "instructions.md"
            path.write_text(machine_page.instructions_page(machine))
            print(f"written: {path}")
    fill(arguments.readme, results.section(arguments.results), results.BEGIN, results.END)
    for part in (classes, places):
        fill(arguments.readme, part.section(), part.BEGIN, part.END)
    for page, text in layers.pages(arguments.results, arguments.readme.parent / "docs/layers").items():
        fill(page, text, layers.BEGIN, layers.END)
    print(f"written: {arguments.readme}")
    return 0
