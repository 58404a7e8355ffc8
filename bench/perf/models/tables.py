"""The table of training steps: time, memory, speed-up and loss difference of each variant."""

import statistics

from bench.harness import tables
from bench.perf.models.variants import FUSED


def step_time(samples):
    p20, _, _, p80 = statistics.quantiles(samples, n=5, method="inclusive")
    return f"{statistics.median(samples):.2f} ({p20:.2f}-{p80:.2f})"


def speed_up(record, records):
    """The speed-up over the fastest variant of the same network that is not normreg's."""
    if record["variant"] not in ("normreg", FUSED):
        return "-"
    medians = {
        other["variant"]: statistics.median(other["step_ms"])
        for other in records
        if other["case"] == record["case"] and other["step_ms"]
    }
    ours = medians.get(record["variant"])
    medians = {variant: median for variant, median in medians.items() if not variant.startswith("normreg")}
    return f"{min(medians.values()) / ours:.2f}x" if ours and medians else "not measured"


def table(records, write=tables.markdown, **options):
    """The table, for a page unless told otherwise, and errors below it."""
    headers = (
        "network | variant | layers replaced | step ms (p20-p80) | peak memory GiB | kept MiB | speed-up | "
        "loss difference | yardstick"
    )
    yardsticks = {r["case"]: r["loss_yardstick"] for r in records if r["variant"] == "torch.nn"}
    rows, errors = [], []
    for record in records:
        unknown = "failed" if record["error"] else "not measured"
        differences = "-", "-"
        if record["variant"] in ("normreg", FUSED):
            values = record["loss_difference"], yardsticks.get(record["case"])
            differences = ("failed" if value is None else f"{value:.1e}" for value in values)
        rows.append(
            (
                record["case"],
                record["variant"],
                record["layers_replaced"],
                step_time(record["step_ms"]) if record["step_ms"] else unknown,
                f"{record['peak_bytes'] / 2**30:.2f}" if record["peak_bytes"] else unknown,
                f"{record['kept_bytes'] / 2**20:.2f}" if record["kept_bytes"] else "-",
                speed_up(record, records),
                *differences,
            )
        )
        errors += [
            f"{record['case']}, {record['variant']}: {error.splitlines()[0]}"
            for error in (record["error"], record["loss_error"])
            if error
        ]
    return "\n".join([write(headers, rows, **options), *errors])


def printed(records):
    """The table for a terminal."""
    return table(records, tables.text, grouped=1)
