"""One pass on a machine with a GPU, five minutes on 16 cores: smoke, kernel tests, the cases that decide.

Every step is a process with a limit of its own, which is stopped with all that it started; what it had
written stays, and the next one runs all the same. Only a wrong value, or a GPU that no longer answers, ends
the pass. All that was written comes in one results.tgz, packed anew after each step, for
`python -m bench report results.tgz`.
"""

import argparse
import contextlib
import importlib.util
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
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from bench.perf import checks

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / "wheels"  # of peers to compare with, taken along to a machine without a network
PYTEST_PROCESSES = 14
SMOKE_BUDGET_S = 48  # of its 60: nothing begins that would end later, and imports come before
TESTS_FILE = "tests/tests.xml"
GRACE_S = 4  # between being asked to stop and being killed: time to write a JUnit file
SUMMARY_CHARACTERS = 10_500  # where a summary is passed on, it is by its last 12,000 characters
SECTION_CHARACTERS = 3000
ERROR_CHARACTERS = 400


@dataclass(frozen=True)
class Step:
    name: str
    command: list
    limit_s: float | None
    log: str  # where what it prints is written, in the folder of the results
    summary: Callable = lambda log: last_lines(log, 3)
    ends_pass: Callable = lambda log: None  # the reason why nothing need follow


@dataclass(frozen=True)
class Outcome:
    step: Step
    status: int | None  # None: stopped at its limit
    seconds: float

    def __str__(self):
        ending = "stopped at its limit" if self.status is None else f"exit {self.status}"
        limit = "no limit" if self.step.limit_s is None else f"limit {self.step.limit_s:g} s"
        return f"{self.step.name}: {ending}, {self.seconds:.0f} s ({limit})"


def last_lines(path, count):
    return "\n".join(path.read_text(errors="replace").splitlines()[-count:]) if path.exists() else ""


def left_out(*paths):
    """What the step itself says that its budget did not suffice for."""
    for path in paths:
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            if line.startswith("left out"):
                yield line


def json_lines(path):
    """The whole lines of a file whose last one may have been cut off."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [entry for entry in found if isinstance(entry, dict)]


def smoke_summary(log):
    records = json_lines(log)
    wrong = [record for record in records if record.get("ok") is False]
    lines = [f"{len(records) - len(wrong)} of {len(records)} checks right"]
    lines += [f"WRONG {json.dumps(record)}"[:300] for record in wrong]
    for record in records:
        if "host_us" in record:
            lines.append(f"host us {record['case']}: {json.dumps(record['host_us'])}")
    return "\n".join(lines)


def why_nothing_follows(log):
    records = json_lines(log)
    if any(record.get("wrong_value") for record in records):
        return "a value is wrong, and nothing measured of it would count"
    if any(record.get("what") == "answers" and not record["ok"] for record in records):
        return "the GPU no longer answers"
    return None


def tests_summary(log):
    return re.sub(r"  +", " ", "\n".join(checks.tests_lines(log.parent)))


def speed_summary(log):
    return last_lines(log, 40)


def pytest_options():
    """What spreads the tests over processes and limits each, and what is missing of it."""
    options, missing = [], []
    for module, given in (
        ("xdist", ["-n", str(PYTEST_PROCESSES), "--dist", "worksteal"]),
        # by a thread, which ends the process: a signal would wait for a kernel that hangs
        ("pytest_timeout", ["--timeout", "60", "--timeout-method", "thread"]),
    ):
        if importlib.util.find_spec(module):
            options += given
        else:
            missing.append(f"{module} is not installed: the tests run without {' '.join(given)}")
    return options, missing


def short_steps(folder, commit):
    bench, noted = [sys.executable, "-m", "bench"], ["--commit", commit] if commit else []
    options, missing = pytest_options()
    tests = [sys.executable, "-m", "pytest", "-m", "gpu", *options, "-q", "-p", "no:cacheprovider"]
    smoke = [*bench, "smoke", "--json", "--budget", str(SMOKE_BUDGET_S), "--out", str(folder), *noted]
    quick = [*bench, "speed", "--quick", "--out", str(folder), *noted]
    return [
        Step("smoke", smoke, 60, "smoke.jsonl", smoke_summary, why_nothing_follows),
        Step("tests", [*tests, f"--junitxml={folder}/{TESTS_FILE}"], 150, "tests/tests.log", tests_summary),
        Step("speed", quick, 75, "speed.log", speed_summary),
    ], missing


def full_steps(folder, commit):
    """For who owns a GPU: everything, without limits."""
    bench, noted = [sys.executable, "-m", "bench"], ["--commit", commit] if commit else []
    tests = [sys.executable, "-m", "pytest", "-q", f"--junitxml={folder}/{TESTS_FILE}"]
    written = ["--out", str(folder), *noted]
    smoke = [*bench, "smoke", "--json", *written]
    return [
        Step("smoke", smoke, None, "smoke.jsonl", smoke_summary, why_nothing_follows),
        Step("tests", tests, None, "tests/tests.log", tests_summary),
        Step("speed", [*bench, "speed", *written], None, "speed.log", speed_summary),
        Step("models", [*bench, "models", *written], None, "models.log", speed_summary),
    ], []


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
    """Makes the peers' packages importable from the target; says where it could not."""
    if not (wheels := sorted(map(str, WHEELS.glob("*.whl")))):
        return []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    done = subprocess.run([*command, "--target", target, *wheels], capture_output=True, text=True)
    why = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return [f"the peers in {WHEELS}: {why}"] if done.returncode else []


def environment_of(folder, commit):
    """What smoke's first record says of the machine; what is known without it, where there is none."""
    known = dict(date=datetime.now(timezone.utc).isoformat(timespec="seconds"), commit=commit, gpu=None)
    records = json_lines(folder / "smoke.jsonl")
    return known | next((record for record in records if record.get("operation") == "environment"), {})


def name_of(gpu):
    """The GPU's name in letters, digits and `. _ -`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", gpu or "").strip("-.") or "unknown-gpu"


def pack(folder, environment, out):
    """The folder's files that are not empty, in one archive, in a folder that is named for the GPU."""
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
    return path


def run_steps(steps, folder, out, commit, notes=()):
    """Runs and packs; prints a summary last. Returns 0 where every step did."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # steps inherit it where it was ignored
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
    """Begin and end of a text that is too long."""
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
    quiet = argparse.SUPPRESS  # given before the part's name they hold as well
    parser.add_argument("--out", type=Path, metavar="DIR", default=quiet, help="where results.tgz is written")
    parser.add_argument("--commit", default=quiet, help="the commit to note")
    parser.add_argument("--full", action="store_true", help="everything, without limits: for who owns a GPU")
    parser.add_argument(
        "--plan", action="store_true", help="no pass: what it would compile, counted here, without a GPU"
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
