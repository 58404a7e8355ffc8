"""Counts what the pass on a GPU would compile, and how long that takes, by compiling it here for sm_90.

Seconds are CPU seconds of everything in a step that needs no GPU: imports, Triton's compiler, ptxas and the
Python code up to each launch. The seconds expected on N cores are those of one process's share and, for
smoke, of the longest check. The time of the GPU, and of its context in each process, is not included.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import ROOT
from bench.gpu_pass.compiles import FOLDER, Compiled, cpu_seconds
from bench.gpu_pass.steps import PYTEST_PROCESSES, short_steps
from bench.harness import side_by_side, tables
from bench.smoke import MOST_PROCESSES
from bench.smoke.cases import TABLE, cases
from bench.smoke.checks import LAYERS, compile_only

COLUMNS = ("kernels", "compile_s", "cpu_s", "expected_s")
CORES = 16  # cores of the machine that the limits are for
compiled = None


def compile_check(check, name):
    """Compiles the kernels of a check of smoke; a process's first check also counts the process's start."""
    global compiled
    start_s = cpu_seconds() if compiled is None else 0.0
    compiled = compiled or Compiled().install()
    before, kernels, seconds = cpu_seconds(), len(compiled.kernels), compiled.seconds
    compile_only(check, name)
    return dict(
        kernels=compiled.kernels[kernels:],
        compile_s=compiled.seconds - seconds,
        cpu_s=cpu_seconds() - before,
        start_s=start_s,
    )


def of_smoke(processes):
    """The figures of smoke: kernels, seconds of compilation, CPU seconds, seconds expected."""
    tasks = [("agrees", str(case)) for case in cases()] + [("first call", name) for name in LAYERS]
    records = [found for _, found in side_by_side.results(tasks, compile_check, os.cpu_count() or 1, 600)]
    if wrong := [record["error"] for record in records if "error" in record]:
        raise RuntimeError(f"expected every check to compile, got {wrong[0]}")
    start_s = max(record["start_s"] for record in records)
    cpu_s = sum(record["cpu_s"] for record in records)
    starts = processes + len(TABLE)  # each CUDA graph has a process of its own
    expected_s = start_s + starts * start_s / processes + cpu_s / processes
    expected_s += max(record["cpu_s"] for record in records)
    return dict(
        kernels=sum(len(record["kernels"]) for record in records),
        compile_s=sum(record["compile_s"] for record in records),
        cpu_s=cpu_s + starts * start_s,
        expected_s=expected_s,
    )


def of_tests(processes):
    """The same figures of the tests that are marked for a GPU, as far as they run without results."""
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ, PYTEST_PLUGINS="bench.gpu_pass.compiles") | {FOLDER: folder}
        here = str(min(os.cpu_count() or 1, PYTEST_PROCESSES))
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", here, "--dist", "worksteal", "-q"]
        command += ["--timeout", "120", "-p", "no:cacheprovider", "--tb=no", "--assert=plain", "-r", "N"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        records = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    last = " ".join((done.stdout + done.stderr).strip().splitlines()[-1:])
    if not records:
        return dict(note=f"not counted: pytest ended with status {done.returncode}: {last}")
    cpu_s = sum(record["cpu_s"] for record in records)
    return dict(
        kernels=sum(len(record["kernels"]) for record in records),
        compile_s=sum(record["compile_s"] for record in records),
        cpu_s=cpu_s,
        expected_s=cpu_s / processes,
        note=f"pytest ended with status {done.returncode}: {last}",
    )


def run(arguments):
    """Prints a row for each step; returns 1 where one does not fit its limit."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = f"{cache}/smoke"
        found = {"smoke": of_smoke(min(MOST_PROCESSES, CORES))}
        os.environ["TRITON_CACHE_DIR"] = f"{cache}/tests"
        found["tests"] = of_tests(min(PYTEST_PROCESSES, CORES))
    rows, fits = [], True
    steps, notes = short_steps(Path("results"), arguments.commit)
    for step in steps:
        figures = found.get(step.name, dict(note="not counted: what it compiles is torch.compile's, too"))
        if "note" in figures:
            notes.append(f"{step.name}: {figures['note']}")
        fits = fits and figures.get("expected_s", 0.0) <= step.limit_s
        numbers = (f"{figures[name]:.0f}" if name in figures else "" for name in COLUMNS)
        rows.append((step.name, f"{step.limit_s:g}", *numbers))
    headers = ("step", "limit s", "kernels", "compiling s", "CPU s", f"expected s, {CORES} cores")
    print(tables.markdown(headers, rows))
    print("\n".join((*notes, "what was counted fits" if fits else "WRONG: a step does not fit its limit")))
    return int(not fits)
