"""What pages of results have in common: a part for each operation, below the machines that it was run on."""

import textwrap

from bench.harness.result_files import load, records_of
from bench.report.machine_page import environment_lines, machines_in, runs_of


def short(case, operation):
    """A case without the name of the operation, below which it stands."""
    return case.removeprefix(f"{operation} ")


def raw(machine, part, operation):
    """The link from a page of docs/benchmarks to an operation's results."""
    path = f"bench/results/{machine.name}/{part}/{operation}.json"
    return f"[{operation}.json](../../{path})"


def by_operation(results, part, text, above=lambda records: []):
    """The text of a part: where it was run, what stands above, and a heading and a text an operation."""
    machines = [machine for machine in machines_in(results) if runs_of(part, [machine])]
    if not machines:
        return "Not counted.\n"
    lines = []
    for machine in machines:
        found = load(machine, part)
        lines += ["Runs:", "", *environment_lines(runs_of(part, [machine])), ""]
        lines += above(records_of(runs_of(part, [machine])))
        for operation, runs in found.items():
            of = f" ({machine.name})" * (len(machines) > 1)
            lines += [f"## {operation}{of}", "", text(machine, operation, records_of(runs)), ""]
            lines += [f"Raw results: {raw(machine, part, operation)}", ""]
    return "\n".join(lines)


def paragraph(text):
    return textwrap.fill(text, 110, break_on_hyphens=False)


def folded(summary, text):
    """A text that a reader opens."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"
