"""Results in JSON files, a file an operation, with the environment that each run was made in."""

import datetime
import json
import platform
import subprocess

import torch
import triton

from bench import ROOT
from bench.harness import interrupts


def _output(*command):
    """What a command prints, or None where it fails or there is none."""
    try:
        return subprocess.check_output(command, cwd=ROOT, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def environment(commit=None):
    """Date, commit, versions and machine of a result."""
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


def write_json(path, value, indent=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(value, indent=indent) + "\n")
    unfinished.replace(path)
    interrupts.KEPT.append(path)


def runs_in(path):
    """The runs that a file holds; an empty list where there is no file or no runs in it."""
    found = json.loads(path.read_text()) if path.suffix == ".json" and path.exists() else None
    return found.get("runs", []) if isinstance(found, dict) else []


def add_runs(path, runs):
    """Adds runs to a file of an operation, which holds one JSON object with a list of them."""
    write_json(path, {"runs": [*runs_in(path), *runs]}, indent=1)


def write(folder, part, records, left_out, environment):
    """Adds a run to a file an operation under folder/part; returns the paths."""
    operations = dict.fromkeys(record["operation"] for record in records)
    paths = []
    for operation in operations:
        own = [record for record in records if record["operation"] == operation]
        path = folder / part / f"{operation}.json"
        add_runs(path, [dict(environment=environment, left_out=left_out, records=own)])
        paths.append(path)
    return paths


def load(folder, part):
    """{operation: its runs}, as `write` left them in folder/part."""
    paths = sorted((folder / part).glob("*.json"))
    return {path.stem: runs_in(path) for path in paths}


def records_of(runs):
    """The records of all runs, the last one where a case was run again."""
    latest = {}
    for run in runs:
        for record in run["records"]:
            who = record.get("peer") or record.get("variant") or record.get("data")
            what = record.get("direction") or record.get("on")
            latest[record["case"], who, what, record.get("launch")] = record
    return list(latest.values())
