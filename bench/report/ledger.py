"""The page of bytes and launches: a table for each operation."""

from bench.harness import tables
from bench.perf.ledger import DIRECTIONS, per_element
from bench.report.pages import by_operation, short


def launches(record):
    return len(record["launches"]) + len(record["torch_operators"])


def table(machine, operation, records):
    """A row for each case: launches, bytes and least bytes of both directions."""
    by_case = {}
    for record in records:
        by_case.setdefault(record["case"], {})[record["direction"]] = record
    headers = ["case", "launches"]
    for direction in DIRECTIONS:
        headers += [f"{direction} B", "least"]
    rows = []
    for case, by_direction in sorted(by_case.items()):
        both = [by_direction[direction] for direction in DIRECTIONS]
        moved = [per_element(record, record[b]) for record in both for b in ("moved_bytes", "least_bytes")]
        rows.append((short(case, operation), " + ".join(str(launches(record)) for record in both), *moved))
    return tables.markdown(headers, rows)


def section(results):
    return by_operation(results, "ledger", table)
