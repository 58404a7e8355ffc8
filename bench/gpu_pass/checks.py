"""The results of a machine's smoke test and of its run of the tests, as markdown."""

from xml.etree import ElementTree

from bench.harness import tables

LONGEST_CELL = 160


def cell(value):
    if isinstance(value, (list, tuple)):
        return ", ".join(map(cell, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {cell(one)}" for name, one in value.items()) or "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else " ".join(str(value).replace("|", "/").split())[:LONGEST_CELL]


def smoke_lines(records):
    """The number of checks that are right, and a table for each kind of record."""
    by_kind = {}
    for record in records:
        by_kind.setdefault(record.get("what", record["operation"]), []).append(record)
    judged = [record["ok"] for record in records if "ok" in record]
    lines = [f"{sum(judged)} of {len(judged)} checks are right.", ""]
    for kind, own in by_kind.items():
        if len(own) == 1:
            facts = (f"- {name}: {cell(value)}" for name, value in own[0].items() if name != "what")
            lines += [f"### {kind}", "", *facts, ""]
            continue
        columns = dict.fromkeys(column for record in own for column in record if column != "what")
        rows = [[cell(record.get(column)) for column in columns] for record in own]
        lines += [f"### {kind}", "", tables.markdown(tuple(columns), rows), ""]
    return lines


def failures_in(suite):
    """Yields (test, first line of the reason) for each test that failed or could not run."""
    for case in suite.iter("testcase"):
        for kind in ("failure", "error"):
            if (found := case.find(kind)) is not None:
                why = found.get("message") or found.text or kind
                yield f"{case.get('classname')}::{case.get('name')}", cell(why.strip().partition("\n")[0])


def tests_lines(folder):
    """The summary of the JUnit file and the tests that failed."""
    try:
        suites = list(ElementTree.parse(folder / "tests.xml").iter("testsuite"))
    except (OSError, ElementTree.ParseError) as error:  # pytest writes the file at its end
        return [f"No summary: tests.xml: {cell(error)}.", "", *log_lines(folder)]

    def total(name):
        return sum(int(suite.get(name, 0)) for suite in suites)

    failures = [failure for suite in suites for failure in failures_in(suite)]
    failed, skipped = total("failures") + total("errors"), total("skipped")
    seconds = sum(float(suite.get("time", 0)) for suite in suites)
    passed = total("tests") - failed - skipped
    lines = [f"{passed} passed, {failed} failed, {skipped} skipped in {seconds:.0f} s.", ""]
    return lines + ([tables.markdown(("failed", "why"), failures), ""] if failures else [])


def log_lines(folder):
    """The last line of the log, which says how far the tests got."""
    log = folder / "tests.log"
    last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
    return [f"The log ends: `{line}`" for line in last] + [""] * len(last)
