"""The page of errors over torch's own: the largest of each result, a plot, and every kind of data."""

from bench.harness import tables
from bench.harness.result_files import load, records_of
from bench.perf.exactness import tables as exactness
from bench.perf.exactness.data import CONSTANT
from bench.report.pages import by_operation, folded, paragraph, short


def results_of(record):
    return record.get("results", {})


def largest(operation, records):
    """A row for each result of a case: its ratio on plain numbers, the largest, and the data that give it."""
    rows = []
    for case, (drawn, _) in exactness.by_case(records).items():
        name_of_case = short(case[0], operation)
        for name in exactness.TARGETS:
            found = {one["data"]: one["results"][name] for one in drawn if name in one["results"]}
            if not found:
                continue
            worst = max(found, key=lambda data: found[data]["ratio"])
            missed = any(exactness.is_missed(one, name) for one in found.values())
            most = exactness.bold(f"{found[worst]['ratio']:.2f}", missed)
            rows.append((name_of_case, name, f"{found['randn']['ratio']:.2f}", most, worst))
            name_of_case = ""
    return tables.markdown(("case", "result", "randn", "largest", "on"), rows)


def every(operation, records):
    """A row for each case and kind of data; no column for what the operation has not."""
    names = [name for name in exactness.TARGETS if any(name in results_of(one) for one in records)]
    drawn = [one for one in records if one["data"] != CONSTANT]
    rows = [
        (short(one["case"], operation), one["data"], *(exactness.cell(one, name) for name in names))
        for one in drawn
    ]
    return tables.markdown(("case", "data", *names), rows)


def of_constants(records):
    found = sorted({exactness.of_constant(one) for one in records if one["data"] == CONSTANT})
    return [f"Constant rows, channels or groups give {' and '.join(found)}.", ""] if found else []


def text(machine, operation, records):
    single = [record for record in records if " fp32 " in record["case"]]
    image = f"../../bench/results/{machine.name}/exactness/{operation}.png"
    return "\n".join(
        [
            largest(operation, single),
            "",
            *of_constants(records),
            f"![{operation}: errors over torch's, for each kind of data]({image})",
            "",
            folded("Every dtype and kind of data", every(operation, records)),
        ]
    )


def of_16_bits(records):
    """A sentence on the largest ratio in 16 bits."""
    others = [
        (found["ratio"], f"{name} of {record['case']}, {record['data']}")
        for record in records
        if " fp32 " not in record["case"]
        for name, found in results_of(record).items()
    ]
    if not others:
        return []
    ratio, of = max(others)
    return [paragraph(f"{exactness.OF_16_BITS} {ratio:.2f}: {of}."), ""]


def kernels(records):
    found = ", ".join(dict.fromkeys(record["on"] for record in records))
    return [paragraph(f"Kernels: {found}. {exactness.WHAT}"), ""]


def section(results):
    return by_operation(results, "exactness", text, lambda found: [*kernels(found), *of_16_bits(found)])


def write_plots(machine):
    """Writes a plot an operation; returns their folder."""
    for operation, found in load(machine, "exactness").items():
        exactness.plot(machine / f"exactness/{operation}.png", operation, records_of(found))
    return machine / "exactness"
