"""Writes tables and plots from the committed results into README and docs, and a report of each GPU.

Results lie in bench/results/<machine>/<part>/<operation>.json, where `--out bench/results/<machine>` writes.
An archive of such folders, as `make gpu` makes it, is unpacked there first. A machine with results of a GPU
(`speed`, `models`, `smoke`, `tests`) gets a report.md and its plots beside them. BLOCKS are what stands
between marks of README and the pages.
"""

import sys
from pathlib import Path

from bench import ROOT
from bench.gpu_pass import archive
from bench.report import (
    chain,
    classes,
    exactness,
    index,
    instructions,
    layers,
    ledger,
    machine_page,
    places,
    speed,
)

# {name: (page, the text between its marks, made of the folder of results)}
BLOCKS = {
    "chain": ("README.md", chain.section),
    "classes": ("docs/classes.md", classes.section),
    "places": ("docs/places.md", places.section),
    "benchmarks": ("docs/benchmarks/index.md", index.section),
    "fused calls": ("docs/benchmarks/chain.md", chain.page),
    "operators": ("docs/benchmarks/chain.md", chain.operators),
    "ledger": ("docs/benchmarks/ledger.md", ledger.section),
    "exactness": ("docs/benchmarks/exactness.md", exactness.section),
    "instructions": ("docs/benchmarks/instructions.md", instructions.section),
    "speed": ("docs/benchmarks/speed.md", speed.section),
    **layers.BLOCKS,
}


def add_arguments(parser):
    parser.add_argument(
        "archive",
        nargs="?",
        type=Path,
        metavar="results.tgz",
        help="results of `make gpu`, unpacked first (default: none)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "bench/results",
        metavar="DIR",
        help="folder with a folder a machine (default: bench/results)",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=ROOT,
        metavar="DIR",
        help="folder of README.md and docs (default: this one)",
    )


def marks(name):
    """The lines that a block stands between."""
    return f"<!-- {name}: written by python -m bench report -->", f"<!-- end of {name} -->"


def block(page, name):
    """What stands between the marks of a block."""
    begin, end = marks(name)
    return page.read_text().split(f"{begin}\n")[1].split(end)[0]


def fill(page, section, begin, end):
    """Replaces the text between two marks of a page."""
    text = page.read_text()
    if text.count(begin) != 1 or text.count(end) != 1:
        sys.exit(f"{page}: expected the lines {begin!r} and {end!r}, once each; put them where results go")
    before, rest = text.split(begin)
    page.write_text(f"{before}{begin}\n{section}{end}{rest.split(end)[1]}")


def run(arguments):
    if arguments.archive is not None:
        for path in archive.unpack(arguments.archive, arguments.results):
            print(f"unpacked: {path}")
    for machine in machine_page.machines_in(arguments.results):
        if machine_page.was_on_a_gpu(machine):
            print(f"written: {machine_page.write(machine)}")
        if machine_page.runs_of("exactness", [machine]):
            print(f"written: {exactness.write_plots(machine)}")
    if image := chain.write_image(arguments.results, arguments.root):
        print(f"written: {image}")
    for name, (page, section) in BLOCKS.items():
        fill(arguments.root / page, section(arguments.results), *marks(name))
        print(f"written: {arguments.root / page}")
    return 0
