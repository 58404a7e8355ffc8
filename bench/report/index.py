"""The table of all proofs: what each counts, and which results of it are here."""

from bench.__main__ import PARTS
from bench.harness import tables
from bench.harness.result_files import records_of
from bench.report import speed
from bench.report.machine_page import machines_in, runs_of

SHOWN = ("ledger", "chain", "exactness", "instructions", "static", "host", "speed", "models")
PAGES = {"models": "speed"}  # of those without a page of their own
WHAT = {"chain": "least bytes and launches of torch's operators, beside fused calls; needs no GPU", **PARTS}


def found(results, part):
    """How many cases are here."""
    runs = runs_of(part, machines_in(results))
    if not runs:
        return "none yet" if part in ("speed", "models") else "none kept: run it"
    return f"{len({record['case'] for record in records_of(runs)})} cases"


def section(results):
    rows = [
        (
            f"[{part}]({PAGES.get(part, part)}.md)",
            WHAT[part].replace("; needs no GPU", ""),
            found(results, part),
        )
        for part in SHOWN
    ]
    table = tables.markdown(("part", "what it shows", "results here"), rows)
    return f"{speed.NONE_YET}\n" * (not speed.is_measured(results)) + f"{table}\n"
