"""One pass on a machine with a GPU, five minutes on 16 cores: smoke, kernel tests, the cases that decide.

Every step is a process with a time limit. At the limit it is stopped with all that it started; what it has
written by then stays, and the next step runs. Only a wrong value, or a GPU that no longer answers, ends the
pass. After each step all files are packed into one results.tgz, for `python -m bench report results.tgz`.
"""

import argparse
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from bench import ROOT
from bench.gpu_pass.steps import Step, full_steps, json_lines, last_lines, short_steps
from bench.harness import interrupts

WHEELS = ROOT / "wheels"  # packages of peers, brought along to a machine without a network
GRACE_S = 4  # from the request to stop until the kill: time to write a JUnit file
SUMMARY_CHARACTERS = 10_500  # whoever passes a summary on may keep only its last 12,000
SECTION_CHARACTERS = 3000
ERROR_CHARACTERS = 400


@dataclass(frozen=True)
class Outcome:
    step: Step
    status: int | None  # None: stopped at its limit
    seconds: float

    def __str__(self):
        ending = "stopped at its limit" if self.status is None else f"exit {self.status}"
        limit = "no limit" if self.step.limit_s is None else f"limit {self.step.limit_s:g} s"
        return f"{self.step.name}: {ending}, {self.seconds:.0f} s ({limit})"


def left_out(*paths):
    """The lines in which a step says what its budget left out."""
    for path in paths:
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            if line.startswith("left out"):
                yield line


def stop(process):
    """Asks the process to stop, as Ctrl-C does, then kills all that it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_step(step, folder, environment):
    begin, status = time.monotonic(), None
    (folder / step.log).parent.mkdir(exist_ok=True)
    with open(folder / step.log, "w") as log, open(folder / f"{step.name}.err", "w") as errors:
        process = subprocess.Popen(
            step.command, stdout=log, stderr=errors, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(step.limit_s)
        finally:
            stop(process)
    return Outcome(step, status, time.monotonic() - begin)


def unpack_wheels(target):
    """Installs the packages of peers into the target; returns why it failed, if it did."""
    if not (wheels := sorted(map(str, WHEELS.glob("*.whl")))):
        return []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    done = subprocess.run([*command, "--target", target, *wheels], capture_output=True, text=True)
    why = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return [f"the peers in {WHEELS}: {why}"] if done.returncode else []


def environment_of(folder, commit):
    """The description of the machine in smoke's first record, or the date and commit where there is none."""
    known = dict(date=datetime.now(timezone.utc).isoformat(timespec="seconds"), commit=commit, gpu=None)
    records = json_lines(folder / "smoke.jsonl")
    return known | next((record for record in records if record.get("operation") == "environment"), {})


def name_of(gpu):
    """The GPU's name, made safe for a folder: letters, digits and `. _ -`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", gpu or "").strip("-.") or "unknown-gpu"


def pack(folder, environment, out):
    """Packs the folder's files that are not empty into results.tgz, under the GPU's name."""
    out.mkdir(parents=True, exist_ok=True)
    path, unfinished, top = out / "results.tgz", out / "results.tgz.part", name_of(environment["gpu"])
    with tarfile.open(unfinished, "w:gz") as archive:
        said = json.dumps(environment, indent=1).encode()
        entry = tarfile.TarInfo(f"{top}/environment.json")
        entry.size, entry.mtime = len(said), int(time.time())
        archive.addfile(entry, io.BytesIO(said))
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.stat().st_size:
                archive.add(file, f"{top}/{file.relative_to(folder)}")
    unfinished.replace(path)
    interrupts.KEPT.append(path)
    return path


def run_steps(steps, folder, out, commit, notes=()):
    """Runs the steps, packs after each, and prints a summary last; returns 0 where every step returned 0."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # steps would inherit that it is ignored
    outcomes, notes, path = [], list(notes), None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        environment = {"TRITON_CACHE_DIR": f"{temporary}/triton", "PYTHONUNBUFFERED": "1", **os.environ}
        notes += unpack_wheels(f"{temporary}/peers")
        paths = f"{temporary}/peers", os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        for number, step in enumerate(steps):
            print(f"{step.name}: {' '.join(map(str, step.command))}", flush=True)
            outcomes.append(run_step(step, folder, environment))
            print(outcomes[-1], flush=True)
            described = environment_of(folder, commit) | dict(
                steps=[dict(name=o.step.name, status=o.status, seconds=round(o.seconds, 1)) for o in outcomes]
            )
            path = pack(folder, described, out)
            reason = step.ends_pass(folder / step.log)
            if reason:
                left = ", ".join(later.name for later in steps[number + 1 :])
                notes.append(f"ended early, because {reason}; left out: {left or 'nothing'}")
                break
    print(summary(outcomes, folder, notes, path), flush=True)
    return int(any(outcome.status != 0 for outcome in outcomes))


def shortened(text, most):
    """The text, or its beginning and end where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    half = most // 2 - 10
    return f"{text[:half]}\n[...]\n{text[-half:]}"


def summary(outcomes, folder, notes, path):
    lines = []
    for outcome in outcomes:
        log, errors = folder / outcome.step.log, folder / f"{outcome.step.name}.err"
        lines += [f"== {outcome}", shortened(outcome.step.summary(log), SECTION_CHARACTERS)]
        if outcome.status:
            lines.append(shortened(last_lines(errors, 3), ERROR_CHARACTERS))
        notes += (
            shortened(f"{outcome.step.name}: {line}", ERROR_CHARACTERS) for line in left_out(log, errors)
        )
        if outcome.status is None:
            notes.append(f"{outcome.step.name} was stopped: of what it had to do, a part is left out")
    lines += ["== left out", *(notes or ["nothing"]), f"written: {path}"]
    return shortened("\n".join(lines), SUMMARY_CHARACTERS)


def add_arguments(parser):
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="folder to write results.tgz to (default: the current one)",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="run everything, without time limits: hours (default: five minutes)",
    )
    parser.add_argument(
        "--plan", action="store_true", help="only count what the pass would compile, which needs no GPU"
    )


def run(arguments):
    if arguments.plan:
        from bench.gpu_pass import plan as gpu_plan

        return gpu_plan.run(arguments)
    from bench.__main__ import has_gpu

    if not has_gpu():
        print("gpu: not measured. It needs a GPU, and none was found.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        make = full_steps if arguments.full else short_steps
        steps, notes = make(Path(folder), arguments.commit)
        return run_steps(steps, Path(folder), arguments.out or Path.cwd(), arguments.commit, notes)
