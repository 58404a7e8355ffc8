"""The steps of a pass on a GPU: their commands and limits, and what their logs say."""

import contextlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from bench.gpu_pass import checks

PYTEST_PROCESSES = 14
SMOKE_BUDGET_S = 48  # of the step's 60: imports come before, and nothing begins that would end later
TESTS_FILE = "tests/tests.xml"


def last_lines(path, count):
    return "\n".join(path.read_text(errors="replace").splitlines()[-count:]) if path.exists() else ""


def json_lines(path):
    """The JSON objects of a file, a line each; a last line that was cut off is skipped."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [entry for entry in found if isinstance(entry, dict)]


@dataclass(frozen=True)
class Step:
    name: str
    command: list
    limit_s: float | None
    log: str  # file in the folder of the results for what the step prints
    summary: Callable = lambda log: last_lines(log, 3)
    ends_pass: Callable = lambda log: None  # the reason to run no further steps, or None


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
    """pytest's options for several processes and a time limit a test, and a note for each missing plugin."""
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
    """All tests and cases without time limits, for whoever owns a GPU."""
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
