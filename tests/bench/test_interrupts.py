"""Ctrl-C ends every command with one line and status 130; what is finished is kept, and no process stays."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import programs
import pytest

from bench import __main__
from bench.harness import interrupts
from bench.harness.budget import Budget, in_processes
from bench.harness.side_by_side import Doing
from bench.harness.worker import Worker

ROOT = Path(__file__).parents[2]
LIMIT_S = 60
everybody = pytest.mark.parametrize("everybody", [True, False], ids=["Ctrl-C", "kill -INT"])


# undoes what a shell does to its background jobs, of which the tests may be one
HEARING = """import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"""


@pytest.fixture
def begun():
    """Starts Python in a process group of its own, as a shell does, and ends what is left of it."""
    processes = []

    def begin(*arguments):
        environment = os.environ | dict(PYTHONPATH=str(ROOT), RANK="0", WORLD_SIZE="1")
        environment |= dict(MASTER_ADDR="localhost", MASTER_PORT="29519")
        options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        command = [sys.executable, "-c", HEARING, *map(str, arguments)]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, **options))
        return processes[-1]

    yield begin
    for process in processes:
        for pid in members(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def members(group):
    """The processes of a group that have not ended, as {pid: what they run}."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of, *_ = (path / "stat").read_text().rpartition(")")[2].split()
            if int(of) == group and state != "Z":
                found[int(path.name)] = (path / "cmdline").read_text()
        except OSError:
            pass
    return found


def wait_for(happened, process):
    end = time.monotonic() + LIMIT_S
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, members(process.pid)
        time.sleep(0.01)


def interrupted(process, everybody=True):
    """What is on stderr after Ctrl-C, or after a signal to the process alone."""
    (os.killpg if everybody else os.kill)(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=LIMIT_S)
    assert "Traceback" not in out
    assert process.returncode == 130, errors
    end = time.monotonic() + 5
    while members(process.pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert members(process.pid) == {}
    return errors


def imports_torch(pid):
    """Whether the process has come so far: its imports take seconds."""
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("command", ["bench exactness", "bench.demo", "bench.study", "bench.ranks"])
def test_while_libraries_are_imported(begun, command):
    process = begun("-m", *command.split())
    wait_for(lambda: imports_torch(process.pid), process)
    assert interrupted(process) == "interrupted; nothing was written\n"


def test_where_c_code_lets_no_exception_pass(begun, tmp_path):
    """As torch's does for some milliseconds of its import: pybind11 then aborts the process."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    'a handler has run by here'\n"
        "except BaseException:\n    os.abort()\n"
        "signal.pause()"
    )
    process = begun(programs.path_of("torch_from_a_folder"), tmp_path)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, errors) == (130, "interrupted; nothing was written\n")


@pytest.mark.parametrize(("workers", "everybody"), [(1, False), (2, True)])
def test_experiments_that_are_done_are_kept(begun, tmp_path, everybody, workers):
    process = begun(programs.path_of("study_that_waits"), tmp_path, workers)
    done = tmp_path / "depth.json"
    wait_for(done.exists, process)
    assert interrupted(process, everybody) == f"interrupted; kept: {done}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["depth.json"]
    assert json.loads(done.read_text())["results"] == {"20": {"seed": 20}, "21": {"seed": 21}}


@everybody
def test_while_a_part_is_measured_in_processes(begun, tmp_path, everybody):
    process = begun("-m", "bench", "ledger", "--out", tmp_path)
    wait_for(lambda: any("spawn_main" in command for command in members(process.pid).values()), process)
    assert interrupted(process, everybody) == "interrupted; nothing was written\n"


@everybody
def test_all_parts(begun, everybody):
    """The part that is interrupted says so, and nobody else."""
    process = begun("-m", "bench")
    parts = lambda: [pid for pid, command in members(process.pid).items() if "host" in command]  # noqa: E731
    wait_for(lambda: any(map(imports_torch, parts())), process)
    assert interrupted(process, everybody) == "interrupted; nothing was written\n"


@pytest.mark.parametrize("out", [True, False])
def test_results_of_a_part_are_kept_or_shown(monkeypatch, capsys, tmp_path, out):
    part = type(sys)("part")
    part.OPERATIONS, part.table = (), lambda records: f"a table of {records}"

    def run(arguments, budget):
        yield dict(operation="layer_norm", case="fp32 2x3")
        raise KeyboardInterrupt

    part.run = run
    monkeypatch.setattr(__main__, "load", lambda name: part)
    monkeypatch.setattr(interrupts, "KEPT", [])
    monkeypatch.setattr(sys, "argv", ["bench", "host", *(["--out", str(tmp_path)] if out else [])])
    part.add_arguments = lambda parser: None
    with pytest.raises(KeyboardInterrupt):
        __main__.main()
    assert "a table of [{'operation': 'layer_norm'" in capsys.readouterr().out
    assert [tmp_path / "host" / "layer_norm.json"] * out == interrupts.KEPT


def test_a_second_one_within_moments_does_not_count(monkeypatch):
    """Both the terminal and a parent may interrupt a process, which is writing by then."""
    monkeypatch.setattr(interrupts, "_last", -interrupts.ALIKE_S)
    counts = []
    for alike_s in (interrupts.ALIKE_S, interrupts.ALIKE_S, -1):
        monkeypatch.setattr(interrupts, "ALIKE_S", alike_s)
        try:
            interrupts._interrupt()
            counts.append(False)
        except KeyboardInterrupt:
            counts.append(True)
    assert counts == [True, False, True]


def test_an_error_that_it_becomes_is_no_other(monkeypatch, capsys):
    monkeypatch.setattr(interrupts, "KEPT", [])
    for last, message in (
        (time.monotonic(), "interrupted; nothing was written\n"),
        (-10.0, "ImportError: torch\n"),
    ):
        monkeypatch.setattr(interrupts, "_last", last)
        with pytest.raises(SystemExit, match="130") if last > 0 else contextlib.nullcontext():
            interrupts._report(ImportError, ImportError("torch"), None)
        assert capsys.readouterr().err == message


def test_processes_that_measure_do_not_hear_of_it():
    """Each would print a traceback: who has started them ends them."""
    asked = signal.SIG_BLOCK, set()
    (blocked,) = in_processes(Budget(), asked[:1], signal.pthread_sigmask, asked[1], processes=2)
    with Worker(Doing) as worker:
        (also,) = worker.call("do", signal.pthread_sigmask, asked, limit=LIMIT_S)
    assert signal.SIGINT in blocked & also
    assert signal.SIGINT not in signal.pthread_sigmask(*asked)


def test_every_command_is_tried():
    """All others are parts of the first of these."""
    mains = [path for path in (ROOT / "bench").rglob("*.py") if '__name__ == "__main__"' in path.read_text()]
    found = {path.relative_to(ROOT / "bench").as_posix() for path in mains}
    assert found == {"__main__.py", "demo/__main__.py", "study/__main__.py", "ranks.py"}
