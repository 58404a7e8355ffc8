"""The table of the places that layers are taken to, from what `pytest --places` wrote."""

import json

from bench import ROOT
from bench.harness import tables
from bench.report.pages import folded

FILE = ROOT / "bench/results/no-gpu/places.json"


def _cases(tests):
    """How many cases of all tests passed, and failed if any did."""
    passed, failed = (sum(one.get(outcome, 0) for one in tests.values()) for outcome in ("passed", "failed"))
    return f"{passed}" + f", {failed} failed" * (failed > 0)


def _links(tests):
    for test, counts in tests.items():
        file, _, name = test.rpartition("::")
        yield f"[`{name}`](../tests/{file}) {_cases({test: counts})}"


def section(results=None):
    found = json.loads(FILE.read_text())
    rows = [(name, one["runs"], _cases(one["tests"])) for name, one in found["places"].items()]
    table = tables.markdown(("where", "what runs there", "cases passed"), rows)
    shown = [f"- {name}: {', '.join(_links(one['tests']))}" for name, one in found["places"].items()]
    versions = f"torch {found['torch']}, Triton {found['triton']}, kernels on the CPU."
    tests = folded("The tests, and how many cases of each passed", "\n".join(shown))
    return "\n\n".join([table, versions, tests]) + "\n"
