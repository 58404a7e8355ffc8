"""The first minute on a GPU: does every kernel launch, agree with float64, follow streams and CUDA graphs?

Errors are in units in the last place of the dtype, at the size of the result, torch's beside ours. Checks run
in processes side by side, so that kernels compile side by side and a spoiled process spoils no other check;
each capture of a CUDA graph has a process of its own. Times of the host come last, when nothing else runs.
Without a GPU the interpreter runs what it can, in this process.

Exit status 1: something is wrong. 2: the GPU itself no longer answers.
"""

import hashlib
import os
from importlib import metadata

from triton.runtime.cache import triton_key

from bench.harness import result_files, side_by_side, tables
from bench.smoke.cases import ALL, TABLE
from bench.smoke.cases import cases as cases_of
from bench.smoke.checks import ALONE, DEVICE, LAYERS, do

OPERATIONS = tuple(TABLE)
LIMIT_S = 40 if DEVICE == "cuda" else 300  # of one check, the start of its process included
SPOILED_IN_A_ROW = 3  # processes, which might also be for faults of the kernels alone
MOST_PROCESSES = 14  # on a GPU; each has a context of half a GiB there
ON_A_GPU = ("another stream", "CUDA graph", "host time")


def add_arguments(parser):
    parser.add_argument(
        "--processes", type=int, metavar="N", default=MOST_PROCESSES if DEVICE == "cuda" else 0,
        help="run checks in N processes side by side; 0: in this one (default: %(default)s)",
    )  # fmt: skip


def tasks(families=None):
    """(check, name) of all that run side by side, the cheap and telling first."""
    chosen = cases_of(families)
    first = {}
    for case in chosen:
        first.setdefault(case.family, str(case))
    found = [("agrees", str(case)) for case in chosen if case.dtype == ALL[0]]
    found += [("draws", "dropout")] * ("dropout" in first)
    if DEVICE == "cuda":
        found += [("another stream", name) for name in first.values()]
    found += [("agrees", str(case)) for case in chosen if case.dtype != ALL[0]]
    if DEVICE == "cuda":
        found += [("first call", name) for name in LAYERS] * (families is None)
        found += [("CUDA graph", name) for name in first.values()]
    return found


def environment(commit):
    """`result_files.environment`, and what decides whether compiled kernels are found in Triton's cache."""
    key = hashlib.sha256(triton_key().encode()).hexdigest()[:16]
    found = dict(numpy=metadata.version("numpy"), triton_key=key, cores=os.cpu_count())
    return result_files.environment(commit) | found


def record_of(task, found):
    check, name = task
    return dict(operation=name.split()[0], case=name, what=check) | found


def run(arguments, budget):
    yield record_of(("environment", "environment"), dict(ok=True) | environment(arguments.commit))
    wanted = budget.within(tasks(arguments.operations), describe=": ".join)
    processes = min(arguments.processes, os.cpu_count() or 1)
    checked = by_processes(wanted, processes) if processes else here(wanted)
    for record in checked:
        yield record
        if record["what"] == "answers" and not record["ok"]:
            return
    if DEVICE == "cuda" and not arguments.operations:
        yield from here(budget.within([("host time", name) for name in LAYERS], describe=": ".join))


def here(wanted):
    """In this process, one after the other."""
    for task in wanted:
        yield record_of(task, do(*task))


def by_processes(wanted, processes):
    """Side by side; where several in a row are spoiled, a new one is asked whether the GPU still answers."""
    in_a_row = 0
    for task, found in side_by_side.results(wanted, do, processes, LIMIT_S, ALONE):
        yield record_of(task, found)
        in_a_row = in_a_row + 1 if found.get("spoiled") else 0
        if in_a_row == SPOILED_IN_A_ROW:
            in_a_row, answer = 0, asked()
            if not answer["ok"]:
                yield record_of(("answers", "GPU"), answer)
                return
    if in_a_row:
        yield record_of(("answers", "GPU"), asked())


def asked():
    ((_, answer),) = side_by_side.results([("answers", "GPU")], do, 1, LIMIT_S)
    return answer


def status(records):
    if any(record["what"] == "answers" and not record["ok"] for record in records):
        return 2
    return int(not all(record["ok"] for record in records))


def worst(records, who):
    """The largest error of results and gradients, and of those records that have any."""
    return max((error for record in records for error in record.get(who, ())), default=0.0)


def table(records):
    """A row for each operation, what is wrong below it, and what no machine without a GPU shows."""
    groups = {}
    for record in records[1:]:
        groups.setdefault(record["operation"], []).append(record)
    rows = []
    for operation, group in groups.items():
        compared = [record for record in group if "ours" in record]
        right = sum(record["ok"] for record in group)
        if compared:
            errors = (f"{worst(compared, who):.1f}" for who in ("ours", "torch"))
            rows.append((operation, len(group), right, *errors))
    lines = [tables.markdown(("operation", "checks", "right", "worst error", "torch's"), rows), ""]
    for record in records:
        if "host_us" in record:
            lines.append(f"host us a call, {record['case']}: " + _host(record["host_us"]))
    lines += [wrong_line(record) for record in records if not record["ok"]]
    if DEVICE == "cpu":
        lines.append(f"{', '.join(ON_A_GPU)}: not measured: needs a GPU")
    right = sum(record["ok"] for record in records)
    return "\n".join((*lines, f"{right} of {len(records)} right"))


def _host(kinds):
    return "; ".join(f"{kind} {us['normreg']} (torch {us['torch']})" for kind, us in kinds.items())


def wrong_line(record):
    """What is wrong with a record, in one line."""
    known = ("operation", "case", "what", "ok", "spoiled", "wrong_value", "first_s")
    details = ", ".join(f"{name} {value}" for name, value in record.items() if name not in known)
    return f"WRONG {record['what']}, {record['case']}: {details}"


CAPTION = "every family against float64, in units in the last place; torch's error beside ours"
