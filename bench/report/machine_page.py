"""The report and the plots of one machine with a GPU."""

import json
import statistics

from bench.gpu_pass import checks
from bench.harness import pictures, tables
from bench.harness.result_files import load, records_of
from bench.perf.models import tables as models
from bench.perf.speed import compare

PARTS_OF_A_GPU = ("speed", "models", "smoke", "tests")


def machines_in(results):
    return sorted(path for path in results.iterdir() if path.is_dir()) if results.is_dir() else []


def was_on_a_gpu(machine):
    return any((machine / part).is_dir() for part in PARTS_OF_A_GPU)


def environment_lines(runs):
    lines = []
    for one in (run["environment"] for run in runs):
        commit, gpu = (one["commit"] or "unknown")[:12], one["gpu"] or "no GPU"
        versions = f"torch {one['torch']}, triton {one['triton']}, Python {one['python']}"
        lines.append(f"- {one['date'][:10]}, commit {commit}, {gpu}, {versions}")
    return list(dict.fromkeys(lines))


def runs_of(part, machines):
    return [run for machine in machines for found in load(machine, part).values() for run in found]


def plot(folder, operation, found, copies):
    """Plots bandwidth against size, with that of a copy, and speed-ups from the worst to the best."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for direction in compare.DIRECTIONS:
        chosen = sorted((one.least_bytes, one.gb_per_s) for one in found if one.direction == direction)
        if chosen:
            left.plot(*zip(*chosen), "o", markersize=4, alpha=0.8, label=direction)
    if copies:
        left.plot(*zip(*copies), "k--", label="torch's copy")
    left.set(xscale="log", xlabel="least bytes a call", ylabel="GB/s: least bytes over device time", ylim=0)
    left.legend()
    left.grid(alpha=0.3)
    speed_ups = sorted(one.speed_up for one in found if one.best)
    colors = ["tab:red" if speed_up < 1 else "tab:green" for speed_up in speed_ups]
    right.bar(range(len(speed_ups)), [s - 1 for s in speed_ups], bottom=1, width=1, color=colors)
    right.axhline(1, color="black", linewidth=1)
    right.set(yscale="log", xticks=[], ylabel="speed-up over the best of the others, device time")
    right.yaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.25, 1.5, 1.75)))
    right.yaxis.set_major_formatter("{x:.3g}")
    right.yaxis.set_minor_locator(NullLocator())
    lost = sum(speed_up < 1 for speed_up in speed_ups)
    right.set_xlabel(f"cases and directions: {len(speed_ups) - lost} not slower, {lost} slower")
    right.grid(alpha=0.3, axis="y")
    figure.suptitle(f"{operation}: normreg on {folder.name}")
    pictures.save(figure, folder / f"{operation}.png")


def speed_lines(machine):
    by_operation = load(machine, "speed")
    copies = [
        (record["bytes"], statistics.median(record["gb_per_s"]))
        for record in records_of(by_operation.pop("copy", []))
    ]
    lines = [f"Copy of {size} bytes: {gb_per_s:.0f} GB/s" for size, gb_per_s in copies[-1:]]
    lines += [""] * len(lines)
    for operation, runs in by_operation.items():
        records = records_of(runs)
        lines += [f"## {operation}", ""]
        if found := compare.comparisons(records):
            plot(machine, operation, found, copies)
            lines += [f"![{operation}]({operation}.png)", ""]
        lines += [tables.markdown(compare.HEADERS, compare.rows(records)), ""]
        lines += [
            "Kept between forward and backward beside x and y, and at the peak of both; the first call:",
            "",
        ]
        lines += [tables.markdown(compare.COST_HEADERS, compare.cost_rows(records)), ""]
        refused = compare.refusals(records)
        if refused:
            lines += ["Not timed:", "", tables.markdown(("case", "peer", "why"), refused), ""]
    left_out = dict.fromkeys(
        case for runs in by_operation.values() for run in runs for case in run["left_out"]
    )
    if left_out:
        lines += [f"Left out, because the budget was spent: {'; '.join(left_out)}", ""]
    return lines


def models_lines(machine):
    records = [record for runs in load(machine, "models").values() for record in records_of(runs)]
    return ["## Training steps", "", models.table(records), ""] if records else []


def smoke_lines(machine):
    """The section on smoke, from the latest run in each file."""
    records = [record for runs in load(machine, "smoke").values() for record in runs[-1]["records"]]
    return ["## Smoke", "", *checks.smoke_lines(records)] if records else []


def tests_lines(machine):
    folder = machine / "tests"
    return ["## Tests", "", *checks.tests_lines(folder)] if folder.is_dir() else []


def environments_of(machine):
    runs = [
        run
        for part in ("smoke", "speed", "models")
        for found in load(machine, part).values()
        for run in found
    ]
    path = machine / "environment.json"
    return runs or ([dict(environment=json.loads(path.read_text()))] if path.exists() else [])


def write(machine):
    lines = [f"# {machine.name}", "", *environment_lines(environments_of(machine)), ""]
    for part in (smoke_lines, tests_lines, speed_lines, models_lines):
        lines += part(machine)
    (machine / "report.md").write_text("\n".join(lines))
    return machine / "report.md"
