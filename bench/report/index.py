"""The table of all proofs: what each counts, and which results of it are here."""

from bench.__main__ import PARTS
from bench.harness import tables
from bench.harness.result_files import records_of
from bench.report import speed
from bench.report.machine_page import machines_in, runs_of

# {part: its page, where it has another name}
PAGES = {
    "ledger": "",
    "chain": "",
    "exactness": "",
    "instructions": "",
    "static": "",
    "host": "",
    "speed": "",
}
PAGES |= {"models": "speed"}
WHAT = {"chain": "least bytes and launches of torch's operators, beside fused calls; needs no GPU", **PARTS}


def found(results, part):
    """How many cases are here."""
    runs = runs_of(part, machines_in(results))
    if not runs:
        return "none yet" if part in ("speed", "models") else "none kept: run it"
    return f"{len({record['case'] for record in records_of(runs)})} cases"


def section(results):
    rows = [
        (f"[{part}]({page or part}.md)", WHAT[part].replace("; needs no GPU", ""), found(results, part))
        for part, page in PAGES.items()
    ]
    table = tables.markdown(("part", "what it shows", "results here"), rows)
    return f"{speed.NONE_YET}\n" * (not speed.is_measured(results)) + f"{table}\n"
