"""What the parts of the benchmark share: time, progress, results in files."""

import contextlib
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import triton

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
except ModuleNotFoundError:
    Progress = None

ROOT = Path(__file__).parents[2]


class Budget:
    """Seconds to work within: nothing begins that would end later, at the pace of the slowest so far."""

    def __init__(self, seconds=None):
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.left_out = []

    def end_in(self, seconds):
        self.deadline = time.monotonic() + seconds

    def left(self):
        """Seconds; infinite without a limit."""
        return math.inf if self.deadline is None else self.deadline - time.monotonic()

    def within(self, items, describe=str, ended=False):
        """The items, as long as there is time, with a progress bar. The others are `left_out`.

        ended: whoever takes an item ends it when the time is over, so that the pace does not matter.
        """
        items, slowest = list(items), 0.0
        with progress(len(items)) as advance:
            for number, item in enumerate(items):
                begin = time.monotonic()
                if self.deadline is not None and begin + slowest * (not ended) > self.deadline:
                    self.left_out += [describe(item) for item in items[number:]]
                    return
                advance(describe(item))
                yield item
                slowest = max(slowest, time.monotonic() - begin)
            advance("done")


def in_processes(budget, cases, function, *arguments):
    """What `function(case, *arguments)` returns for each case, in as many processes as there are cores.

    Processes, because most of a compilation holds Python's lock; spawned, because torch cannot be forked.
    """
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        pending = [(case, pool.submit(function, case, *arguments)) for case in cases]
        try:
            for _, future in budget.within(pending, describe=lambda item: str(item[0])):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def progress(total):
    """A function to call with what begins now."""
    if Progress is None or not sys.stderr.isatty():
        yield lambda description: None
        return
    columns = ("{task.description}", BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=-1)
        yield lambda description: bar.update(task, advance=1, description=description)


def _output(*command):
    try:
        return subprocess.check_output(command, cwd=ROOT, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def environment(commit=None):
    """Where and with what a result was obtained."""
    found = dict(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        commit=commit or _output("git", "rev-parse", "HEAD"),
        uncommitted_changes=None if commit else bool(_output("git", "status", "--porcelain")),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=triton.__version__,
        processor=platform.processor() or platform.machine(),
        gpu=None,
    )
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        fields = (
            "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
        )
        found |= dict(
            gpu=properties.name,
            multiprocessors=properties.multi_processor_count,
            memory_bytes=properties.total_memory,
            cache_bytes=properties.L2_cache_size,
            runtime=torch.version.cuda or torch.version.hip,
            driver_and_clocks=_output("nvidia-smi", f"--query-gpu={fields}", "--format=csv"),
        )
    return found


def append_run(path, run):
    """Adds a run to the file of an operation, which holds one JSON object with a list of runs."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"runs": [*runs, run]}, indent=1) + "\n")


def write(folder, part, records, left_out, environment):
    """A file an operation under folder/part; returns the paths."""
    operations = dict.fromkeys(record["operation"] for record in records)
    paths = []
    for operation in operations:
        own = [record for record in records if record["operation"] == operation]
        path = folder / part / f"{operation}.json"
        append_run(path, dict(environment=environment, left_out=left_out, records=own))
        paths.append(path)
    return paths
