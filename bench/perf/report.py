"""Tables and plots from the results that are committed, and the section of README that shows them.

Results lie in bench/results/<machine>/<part>/<operation>.json, where `--out bench/results/<machine>` writes.
An archive of such folders, as `make gpu` makes it, is unpacked there first. A machine with results of a GPU
(`speed`, `models`, `smoke`, `tests`) gets a report.md and its plots beside them.
"""

import json
import statistics
import sys
from pathlib import Path

from bench.gpu_pass import archive
from bench.operations import OPERATIONS
from bench.perf import checks, classes, compare, instructions_table, ledger, models, tables

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- results: written by python -m bench report -->", "<!-- end of results -->"
NOT_MEASURED = "not measured"
DIRECTIONS = ("forward", "backward", "forward+backward", "evaluation")


PARTS_OF_A_GPU = ("speed", "models", "smoke", "tests")


def add_arguments(parser):
    parser.add_argument(
        "archive", nargs="?", type=Path, metavar="results.tgz", help="a GPU's results, unpacked first"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results", help="bench/results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="README.md")


def load(machine, part):
    """{operation: its runs} of one machine and part."""
    paths = sorted((machine / part).glob("*.json"))
    return {path.stem: json.loads(path.read_text())["runs"] for path in paths}


def records_of(runs):
    """The records of all runs; of a case that was run again, the last."""
    latest = {}
    for run in runs:
        for record in run["records"]:
            who = record.get("peer") or record.get("variant")
            latest[record["case"], who, record.get("direction"), record.get("launch")] = record
    return list(latest.values())


def environment_lines(runs):
    lines = []
    for one in (run["environment"] for run in runs):
        commit, gpu = (one["commit"] or "unknown")[:12], one["gpu"] or "no GPU"
        versions = f"torch {one['torch']}, triton {one['triton']}, Python {one['python']}"
        lines.append(f"- {one['date'][:10]}, commit {commit}, {gpu}, {versions}")
    return list(dict.fromkeys(lines))


def speed_summary(machines):
    """A row for each operation and direction, the machines one after another."""
    headers = (
        "GPU", "layer", "direction", "cases", "speed-up, geometric mean", "least", "greatest",
        "% of copy, median",
    )  # fmt: skip
    rows = []
    for machine in machines:
        for operation, runs in load(machine, "speed").items():
            found = compare.comparisons(records_of(runs))
            for direction in DIRECTIONS:
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
                            *(f"{f(speed_ups):.2f}" for f in (compare.geometric_mean, min, max)),
                            f"{fraction:.0%}",
                        )
                    )
    measured = {row[1] for row in rows}
    rows += [("any", name, *[NOT_MEASURED] * 6) for name in OPERATIONS if name not in measured]
    return tables.markdown(headers, rows)


def models_summary(machines):
    """A row for each network: normreg's training step and what it is compared with."""
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


def instructions_runs(machines):
    return [run for machine in machines for found in load(machine, "instructions").values() for run in found]


def instructions_page(machine):
    """The text of the page with all launches that were executed."""
    runs = instructions_runs([machine])
    lines = [f"# Instructions: {machine.name}", "", *environment_lines(runs), ""]
    return "\n".join([*lines, *instructions_table.page(records_of(runs)), ""])


def readme_section(results):
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
    lines += [*instructions_table.section(records_of(instructions_runs(machines))), ""]
    lines += [
        f"Every launch that was executed: [{machine.name}]({machine.relative_to(ROOT)}/instructions.md)\n"
        for machine in machines
        if instructions_runs([machine])
    ]
    lines += ["### Time, against the best of torch eager, torch.compile and the installed peers", ""]
    lines += [speed_summary(machines), ""]
    lines += ["### Training steps, against the faster of torch.nn and torch.compile", ""]
    lines += [models_summary(machines), ""]
    for machine in machines:
        if was_on_a_gpu(machine):
            lines += [
                f"Everything of [{machine.name}]({machine.relative_to(ROOT)}/report.md), with plots",
                "",
            ]
    return "\n".join(lines)


def fill(readme, section, begin=BEGIN, end=END):
    """README with the text between two marks replaced."""
    text = readme.read_text()
    if text.count(begin) != 1 or text.count(end) != 1:
        sys.exit(f"{readme}: expected the lines {begin!r} and {end!r}, once each; put them where results go")
    before, rest = text.split(begin)
    readme.write_text(f"{before}{begin}\n{section}{end}{rest.split(end)[1]}")


def plot(folder, operation, found, copies):
    """Bandwidth against size with the copy's, and the speed-ups from the worst to the best."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for direction in DIRECTIONS:
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
    figure.savefig(folder / f"{operation}.png", dpi=110)


def was_on_a_gpu(machine):
    return any((machine / part).is_dir() for part in PARTS_OF_A_GPU)


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
    """Of the latest run of each file."""
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


def write_machine_report(machine):
    lines = [f"# {machine.name}", "", *environment_lines(environments_of(machine)), ""]
    for part in (smoke_lines, tests_lines, speed_lines, models_lines):
        lines += part(machine)
    (machine / "report.md").write_text("\n".join(lines))
    return machine / "report.md"


def run(arguments):
    if arguments.archive is not None:
        for path in archive.unpack(arguments.archive, arguments.results):
            print(f"unpacked: {path}")
    machines = sorted(arguments.results.iterdir()) if arguments.results.is_dir() else []
    for machine in machines:
        if was_on_a_gpu(machine):
            print(f"written: {write_machine_report(machine)}")
        if instructions_runs([machine]):
            path = machine / "instructions.md"
            path.write_text(instructions_page(machine))
            print(f"written: {path}")
    fill(arguments.readme, readme_section(arguments.results))
    fill(arguments.readme, classes.section(), classes.BEGIN, classes.END)
    print(f"written: {arguments.readme}")
    return 0
