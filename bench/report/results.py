"""README's section of results: tables of bytes, errors, instructions, time and training steps."""

import statistics

from bench.harness import tables
from bench.harness.result_files import load, records_of
from bench.operations import OPERATIONS
from bench.perf import ledger
from bench.perf.exactness import tables as exactness
from bench.perf.instructions import tables as instructions
from bench.perf.models import tables as models
from bench.perf.speed import compare
from bench.report import machine_page

BEGIN, END = "<!-- results: written by python -m bench report -->", "<!-- end of results -->"
NOT_MEASURED = "not measured"


def speed_summary(machines):
    """A row for each machine, operation and direction."""
    headers = (
        "GPU | layer | direction | cases | speed-up, geometric mean | least | greatest | % of copy, median"
    )
    rows = []
    for machine in machines:
        for operation, runs in load(machine, "speed").items():
            found = compare.comparisons(records_of(runs))
            for direction in compare.DIRECTIONS:
                chosen = [one for one in found if one.direction == direction and one.best]
                if chosen:
                    speed_ups = [one.speed_up for one in chosen]
                    fraction = statistics.median(one.copy_fraction for one in chosen)
                    rows.append(
                        (
                            runs[-1]["environment"]["gpu"],
                            operation,
                            direction,
                            len(chosen),
                            *(f"{f(speed_ups):.2f}" for f in (statistics.geometric_mean, min, max)),
                            f"{fraction:.0%}",
                        )
                    )
    if {*OPERATIONS}.difference(row[1] for row in rows):
        rows.append(("any", "all others" if rows else "any", *[NOT_MEASURED] * 6))
    return tables.markdown(headers, rows)


def models_summary(machines):
    """A row for each machine and network with normreg's training step."""
    headers = ("GPU", "network", "step ms", "speed-up", "loss difference", "torch.nn's own, to float32")
    rows = []
    for machine in machines:
        for runs in load(machine, "models").values():
            records = records_of(runs)
            gpu = runs[-1]["environment"]["gpu"]
            original = next((record for record in records if record["variant"] == "torch.nn"), {})
            rows += [
                (
                    gpu,
                    record["case"],
                    models.step_time(record["step_ms"]),
                    models.speed_up(record, records),
                    *(
                        "failed" if value is None else f"{value:.1e}"
                        for value in (record["loss_difference"], original.get("loss_yardstick"))
                    ),
                )
                for record in records
                if record["variant"] == "normreg" and record["step_ms"]
            ]
    rows = rows or [("any", "any", *[NOT_MEASURED] * 4)]
    return tables.markdown(headers, rows)


def pages(part, tables_of_part, what, machines):
    """The section of a part, and a link to each machine's page of it."""
    lines = tables_of_part.section(records_of(machine_page.runs_of(part, machines)))
    lines += [""] * bool(lines)
    return lines + [
        f"{what}: [{machine.name}](bench/results/{machine.name}/{part}.md)\n"
        for machine in machines
        if machine_page.runs_of(part, [machine])
    ]


def section(results):
    machines = sorted(path for path in results.iterdir() if path.is_dir()) if results.is_dir() else []
    lines = ["### Bytes moved and kernels launched", ""]
    runs = [run for machine in machines for found in load(machine, "ledger").values() for run in found]
    if runs:
        lines += [
            f"{ledger.CAPTION[0].upper()}{ledger.CAPTION[1:]}. `least` is what any implementation moves."
        ]
        lines += ["", ledger.summary(records_of(runs)), ""]
    else:
        lines += [f"{NOT_MEASURED}.", ""]
    lines += pages("exactness", exactness, "Every kind of data, with plots", machines)
    lines += pages("instructions", instructions, "Every launch that was executed", machines)
    lines += ["### Time, against the best of torch eager, torch.compile and the installed peers", ""]
    lines += [speed_summary(machines), ""]
    lines += ["### Training steps, against the faster of torch.nn and torch.compile", ""]
    lines += [models_summary(machines), ""]
    for machine in machines:
        if machine_page.was_on_a_gpu(machine):
            lines += [
                f"Everything of [{machine.name}](bench/results/{machine.name}/report.md), with plots",
                "",
            ]
    return "\n".join(lines)
