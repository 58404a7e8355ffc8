"""The process that measurements run in: a call that raises, dies or hangs spoils none after it."""

import os
import signal
import time
from pathlib import Path

import programs
import pytest

from bench.harness.side_by_side import together
from bench.harness.worker import Failed, Worker

ROOT = Path(__file__).parents[2]
LIMIT = 60


class Served:
    def __init__(self):
        self.spoiled = False

    def numbers(self, count):
        yield from range(count)

    def process(self):
        yield os.getpid()

    def raising(self):
        yield "before"
        self.spoiled = True
        raise ValueError("no such kernel\nand more")

    def whether_spoiled(self):
        yield self.spoiled

    def ending(self, how):
        yield "before"
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), signal.SIGSEGV)

    def hanging(self):
        yield "before"
        time.sleep(LIMIT)

    def leaving(self, path):
        if path is None:
            os._exit(3)
        path.touch()
        yield from ()


class Unmade:
    def __init__(self):
        raise RuntimeError("no GPU")


@pytest.fixture
def worker():
    with Worker(Served) as made:
        yield made


def test_one_process_serves_all_calls(worker):
    assert list(worker.call("numbers", 3, limit=LIMIT)) == [0, 1, 2]
    processes = {process for _ in range(3) for process in worker.call("process", limit=LIMIT)}
    assert len(processes) == 1
    assert processes != {os.getpid()}


FAILURES = [
    (("raising",), "^ValueError: no such kernel$"),
    (("ending", "exit"), "^the process died: exit code 3$"),
    (("ending", "signal"), "^the process died: SIGSEGV$"),
    (("hanging",), "^no answer in 1 s$"),
]


@pytest.mark.parametrize(("call", "why"), FAILURES)
def test_after_a_failure_another_process_serves(worker, call, why):
    (process,) = worker.call("process", limit=LIMIT)
    answers = worker.call(*call, limit=1 if call == ("hanging",) else LIMIT)
    assert next(answers) == "before"  # what was found before is kept
    with pytest.raises(Failed, match=why):
        next(answers)
    assert list(worker.call("whether_spoiled", limit=LIMIT)) == [False]
    assert list(worker.call("process", limit=LIMIT)) != [process]


def test_a_call_that_is_given_up_ends_its_process(worker):
    answers = worker.call("numbers", 3, limit=LIMIT)
    next(answers)
    answers.close()
    assert list(worker.call("numbers", 2, limit=LIMIT)) == [0, 1]


def test_what_cannot_be_made_says_why():
    with Worker(Unmade) as worker, pytest.raises(Failed, match=r"^RuntimeError: no GPU$"):
        list(worker.call("numbers", 1, limit=LIMIT))


def test_calls_together_leave_what_they_do(tmp_path):
    paths = [tmp_path / str(number) for number in range(6)]
    calls = [("leaving", path) for path in (*paths[:3], None, *paths[3:])]
    together(Served, calls, processes=2, seconds=LIMIT)
    assert sorted(tmp_path.iterdir()) == paths


def test_calls_together_end_in_time():
    begin = time.monotonic()
    together(Served, [("hanging",)] * 4, processes=2, seconds=1.5)
    assert time.monotonic() - begin < LIMIT / 2


def runs(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended, and nobody asked how


def test_a_worker_ends_with_its_parent():
    process = int(programs.compiling("orphan").stdout)
    end = time.monotonic() + LIMIT
    while time.monotonic() < end and runs(process):
        time.sleep(0.1)
    assert not runs(process)
