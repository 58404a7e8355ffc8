"""The pass on a GPU with stand-ins for its steps: limits, what ends it, what is packed and what is said."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import programs
import pytest
from gpu_pass_steps import SUITES, python, step

from bench import gpu_pass as gpu
from bench.gpu_pass import steps as gpu_steps

SMOKE = [
    dict(operation="environment", what="environment", ok=True, gpu="NVIDIA H100 80GB HBM3", commit="abc"),
    dict(operation="layer_norm", case="layer_norm bf16 768", what="agrees", ok=True),
]
WRONG = dict(operation="rms_norm", case="rms_norm bf16 768", what="agrees", ok=False, wrong_value=True)
REFUSED = dict(operation="dropout", case="dropout bf16 8", what="CUDA graph", ok=False, error="no capture")
SILENT = dict(operation="GPU", case="GPU", what="answers", ok=False, error="no answer in 40 s")


def smoke_step(*records, status=0):
    lines = "\n".join(map(json.dumps, records))
    return gpu_steps.Step(
        "smoke",
        python(f"print({lines!r}); raise SystemExit({status})"),
        20,
        "smoke.jsonl",
        gpu_steps.smoke_summary,
        gpu_steps.why_nothing_follows,
    )


def leaving(*arguments, limit_s=20):
    """A step that starts a process and does not end it."""
    command = [sys.executable, str(programs.path_of("hangs")), *arguments]
    return gpu_steps.Step("tests", command, limit_s, "tests.log")


@pytest.fixture
def run(tmp_path, capsys):
    """Runs steps; returns the exit status, what was printed, and the archive's files by name."""
    kept = signal.getsignal(signal.SIGINT)
    results, out = tmp_path / "results", tmp_path / "out"
    results.mkdir()

    def run(*steps, notes=()):
        status = gpu.run_steps(steps, results, out, "abc", notes)
        assert [path.name for path in out.iterdir()] == ["results.tgz"]
        with tarfile.open(out / "results.tgz") as archive:
            packed = {name: archive.extractfile(name).read().decode() for name in archive.getnames()}
        return status, capsys.readouterr().out, packed

    run.folder = results
    yield run
    signal.signal(signal.SIGINT, kept)


def test_everything_is_packed(run):
    writes = f"from pathlib import Path; p = Path({str(run.folder)!r}) / 'speed'; p.mkdir();"
    writes += "(p / 'layer_norm.json').write_text('{}'); print('| a table |')"
    status, printed, packed = run(smoke_step(*SMOKE), step("speed", writes))
    assert status == 0
    top = "NVIDIA-H100-80GB-HBM3"
    assert set(packed) == {
        f"{top}/environment.json",
        f"{top}/smoke.jsonl",
        f"{top}/speed.log",
        f"{top}/speed/layer_norm.json",
    }
    environment = json.loads(packed[f"{top}/environment.json"])
    assert (environment["gpu"], environment["commit"]) == ("NVIDIA H100 80GB HBM3", "abc")
    assert [(s["name"], s["status"]) for s in environment["steps"]] == [("smoke", 0), ("speed", 0)]
    assert "2 of 2 checks right" in printed
    assert "| a table |" in printed
    assert printed.index("== left out\nnothing") > printed.index("| a table |")


def test_what_follows_a_failure_runs_all_the_same(run):
    status, printed, packed = run(
        smoke_step(*SMOKE, REFUSED, status=1), step("tests", "raise SystemExit(3)"), step("speed", "print(7)")
    )
    assert status == 1
    assert packed["NVIDIA-H100-80GB-HBM3/speed.log"] == "7\n"
    assert "== smoke: exit 1, " in printed
    assert "== tests: exit 3, " in printed
    assert "no capture" in printed


@pytest.mark.parametrize(
    ("record", "status", "reason"),
    [(WRONG, 1, "a value is wrong"), (SILENT, 2, "the GPU no longer answers")],
    ids=["a wrong value", "a GPU that does not answer"],
)
def test_what_ends_the_pass(run, record, status, reason):
    ended, printed, packed = run(
        smoke_step(*SMOKE, record, status=status), step("tests", "print(6)"), step("speed", "print(7)")
    )
    assert ended == 1
    assert set(packed) == {f"NVIDIA-H100-80GB-HBM3/{name}" for name in ("environment.json", "smoke.jsonl")}
    assert f"ended early, because {reason}" in printed
    assert "left out: tests, speed\n" in printed


LIMIT_S = 500


@pytest.fixture
def limit_ends(monkeypatch):
    """Lets a limit of LIMIT_S end as soon as the step has got far enough, however fast the machine is."""

    def set_end(done):
        class Process(subprocess.Popen):
            def wait(self, timeout=None):
                if timeout != LIMIT_S:
                    return super().wait(timeout)
                deadline = time.monotonic() + 60
                while not done() and time.monotonic() < deadline:
                    time.sleep(0.02)
                return super().wait(0.1)

        monkeypatch.setattr(subprocess, "Popen", Process)

    return set_end


def is_alive(pid):
    """Whether the process runs; one that nobody has waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("deaf", [False, True], ids=["stops when asked", "has to be killed"])
def test_a_step_that_hangs(run, monkeypatch, limit_ends, deaf):
    """The step's own child hangs, too; what the step had written is kept."""
    monkeypatch.setattr(gpu, "GRACE_S", 1)
    begin, log = time.monotonic(), run.folder / "tests.log"
    limit_ends(lambda: log.exists() and "hangs" in log.read_text())
    hanging = leaving("stays", *["deaf"] * deaf, limit_s=LIMIT_S)
    status, printed, packed = run(hanging, step("speed", "print(7)"))
    assert time.monotonic() - begin < 30
    assert status == 1
    words = packed["unknown-gpu/tests.log"].split()
    assert words[0] == "grandchild"
    deadline = time.monotonic() + 10
    while is_alive(int(words[1])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int(words[1]))
    assert packed["unknown-gpu/speed.log"] == "7\n"
    assert "== tests: stopped at its limit, " in printed
    assert "tests was stopped: of what it had to do, a part is left out" in printed


def test_a_step_that_leaves_a_process_behind(run):
    """A process that an ended step leaves behind does not slow the next step down."""
    _, _, packed = run(leaving())
    pid = int(packed["unknown-gpu/tests.log"].split()[1])
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def test_pytest_writes_its_file_when_stopped(run, tmp_path, monkeypatch, limit_ends):
    """The pass stops pytest as Ctrl-C does, so that the JUnit file has the tests that had run."""
    monkeypatch.setattr(gpu, "GRACE_S", 20)
    tests, begun = tmp_path / "test_slow.py", tmp_path / "begun"
    shutil.copy(SUITES / "stopped.py", tests)
    limit_ends(begun.exists)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(tmp_path / "pytest.ini"), str(tests)]
    command += ["-p", "no:cacheprovider", f"--junitxml={run.folder}/{gpu_steps.TESTS_FILE}"]
    status, printed, packed = run(
        gpu_steps.Step("tests", command, LIMIT_S, "tests/tests.log", gpu_steps.tests_summary)
    )
    assert status == 1
    assert "test_wrong" in packed["unknown-gpu/tests/tests.xml"]
    assert re.search(r"test_slow::test_wrong \| assert 1 == 2", printed)
    assert "stopped at its limit" in printed


def test_one_cache_for_all_steps(run, monkeypatch, tmp_path):
    source = "import os; print(os.environ['TRITON_CACHE_DIR'])"
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    _, _, packed = run(step("tests", source), step("speed", source))
    assert packed["unknown-gpu/tests.log"] == packed["unknown-gpu/speed.log"]
    assert not os.path.exists(packed["unknown-gpu/tests.log"].strip())
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    _, _, packed = run(step("tests", source))
    assert packed["unknown-gpu/tests.log"].strip() == str(tmp_path)


def wheel(folder, name, source):
    """A wheel of a package with one module."""
    info = f"{name}-1.0.dist-info"
    files = {f"{name}.py": source, f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"}
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as packed:
        for path, text in files.items():
            packed.writestr(path, text)


def test_wheels_of_peers_are_taken_along(run, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "WHEELS", tmp_path)
    monkeypatch.setenv("PYTHONPATH", "also here")
    wheel(tmp_path, "a_peer", "print('here')")
    _, printed, packed = run(step("speed", "import a_peer, os; print(os.environ['PYTHONPATH'])"))
    here, path = packed["unknown-gpu/speed.log"].splitlines()
    assert here == "here"
    assert path.endswith(f"peers{os.pathsep}also here")
    assert "the peers in" not in printed
    (tmp_path / "broken-1.0-py3-none-any.whl").write_text("no archive")
    _, printed, _ = run(step("speed", ""))
    assert f"the peers in {tmp_path}: " in printed


def test_the_summary_is_short(run):
    wrong = [REFUSED | dict(case=f"case {i}") for i in range(1000)]
    _, printed, _ = run(
        smoke_step(*SMOKE, *wrong, status=1),
        step("tests", "print('x' * 100_000)"),
        step("speed", "for i in range(1000): print('y' * 300)", summary=gpu_steps.speed_summary),
    )
    begin = printed.index("== smoke")
    assert len(printed) - begin < 11_000
    assert "== left out" in printed


def test_what_a_step_leaves_out_is_said_last(run):
    said = "import sys; print('left out, because the budget was spent: rms_norm', file=sys.stderr)"
    _, printed, _ = run(step("speed", said))
    assert printed.index("speed: left out, because the budget") > printed.index("== left out")


def test_the_end_of_a_traceback_is_said(run):
    _, printed, _ = run(step("smoke", "raise ValueError('of import')"))
    assert "ValueError: of import" in printed


def test_a_line_that_was_cut_off(run):
    cut = f'print({json.dumps(json.dumps(SMOKE[0]))}); print(\'{{"operation": "lay\')'
    cut_off = gpu_steps.Step(
        "smoke", python(cut), 20, "smoke.jsonl", gpu_steps.smoke_summary, gpu_steps.why_nothing_follows
    )
    status, printed, _ = run(cut_off)
    assert status == 0
    assert "1 of 1 checks right" in printed
