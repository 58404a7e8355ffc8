"""The page of counted instructions: kernels that memory does not bound, peers, and every launch."""

from bench.harness import tables
from bench.perf.instructions import tables as instructions
from bench.perf.peers import OURS
from bench.report.pages import by_operation, folded, paragraph, short


def above(records):
    """What stands above the operations: the model, the kernels that memory does not bound, and peers."""
    lines = [paragraph(instructions.WHAT), ""]
    lines += ["## Kernels that memory does not bound", ""]
    lines += ["Each where it is furthest from being bound by memory:", "", instructions.worst(records), ""]
    lines += [paragraph(sentence) + "\n" for sentence in instructions.absent(records)]
    if beside := instructions.beside_peers(records):
        lines += ["## Peers", "", paragraph(instructions.BESIDE), "", beside, ""]
    return lines


def grouped(operation, records, cells):
    """A row for each launch, below one with its case."""
    rows, case = [], None
    for record in records:
        by = "" if record["peer"] == OURS else f", {record['peer']}"
        if case != (case := f"**{short(record['case'], operation)}{by}**"):
            rows.append([case])
        rows.append([f"{record['direction']}: {record['kernel'].removesuffix('_kernel')}", *cells(record)])
    width = max(map(len, rows))
    return [row + [""] * (width - len(row)) for row in rows]


def of_model(model):
    """The model's times, the largest in bold."""
    memory, issue, pipe, larger = instructions.model_cells(model)
    names = ("memory", "issue", pipe.split()[-1])
    return [f"**{time}**" if name == larger else time for name, time in zip(names, (memory, issue, pipe))]


def of_memory(record):
    return (
        f"{record['dram_bytes'] / record['elements']:.2f}",
        f"{instructions.sectors_over_bytes(record):.2f}",
        f"{instructions.passes(record):.2f}",
        f"{instructions.lanes_per_element(record):.1f}",
        *of_model(record["model"]),
    )


def of_classes(record):
    return [f"{instructions.lanes_per_element(record, name):.2f}" for name in instructions.CLASSES]


def text(machine, operation, records):
    records = sorted(records, key=lambda record: record["case"])
    counted = instructions.counted(records)
    headers = ("launch", "DRAM B", "sectors/B", "passes", "instr.", *instructions.MODEL_HEADERS[:3])
    by_launch = tables.markdown(headers, grouped(operation, counted, of_memory))
    by_class = tables.markdown(("launch", *instructions.CLASSES), grouped(operation, counted, of_classes))
    return "\n\n".join(
        [
            folded("Bytes, instructions and the model's times", by_launch),
            folded("Instructions an element, by class", by_class),
            *instructions.refusals(records),
        ]
    )


def section(results):
    return by_operation(results, "instructions", text, above)
