"""README's table of the places that layers are taken to, from what `pytest --places` wrote."""

import json

from bench import ROOT
from bench.harness import tables

BEGIN, END = "<!-- places: written by python -m bench report -->", "<!-- end of places -->"
FILE = ROOT / "bench/results/no-gpu/places.json"


def _shown(tests):
    """The tests that show a place, as links, each with the number of its cases that passed."""
    texts = []
    for test, counts in tests.items():
        file, _, name = test.rpartition("::")
        failed = f", {counts['failed']} failed" if "failed" in counts else ""
        texts.append(f"[`{name}`](tests/{file}) {counts.get('passed', 0)}{failed}")
    return ", ".join(texts) or "no test"


def section():
    found = json.loads(FILE.read_text())
    rows = [(name, one["runs"], _shown(one["tests"])) for name, one in found["places"].items()]
    table = tables.markdown(("where", "what runs there", "tests, and how many cases of theirs passed"), rows)
    return f"{table}\ntorch {found['torch']}, Triton {found['triton']}, kernels on the CPU.\n"
