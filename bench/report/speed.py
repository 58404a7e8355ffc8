"""The page of times on GPUs: layers against torch and peers, and training steps."""

import statistics

from bench.harness import tables
from bench.harness.result_files import load, records_of
from bench.operations import OPERATIONS
from bench.perf.models import tables as models
from bench.perf.speed import compare
from bench.report.machine_page import machines_in, runs_of, was_on_a_gpu

NOT_MEASURED = "not measured"
NONE_YET = "**GPU timings: none yet.** No GPU has run these kernels so far.\n"


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


def is_measured(results):
    return any(runs_of(part, machines_in(results)) for part in ("speed", "models"))


def section(results):
    machines = machines_in(results)
    if not is_measured(results):
        return NONE_YET
    lines = ["## Layers, against the best of torch eager, torch.compile and the installed peers", ""]
    lines += [speed_summary(machines), ""]
    lines += ["## Training steps, against the faster of torch.nn and torch.compile", ""]
    lines += [models_summary(machines), ""]
    for machine in machines:
        if was_on_a_gpu(machine):
            lines += [
                f"Everything of {machine.name}, with plots: `bench/results/{machine.name}/report.md`",
                "",
            ]
    return "\n".join(lines)
