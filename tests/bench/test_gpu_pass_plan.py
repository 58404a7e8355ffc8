"""What the pass on a GPU plans: options of pytest, limits, names, what is compiled."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from gpu_pass_steps import SUITES, step

from bench import gpu_pass as gpu
from bench.gpu_pass import plan as gpu_plan
from bench.gpu_pass import steps as gpu_steps
from bench.smoke.cases import cases


def test_missing_plugins(monkeypatch, tmp_path):
    real = gpu_steps.importlib.util.find_spec
    missing = {"xdist", "pytest_timeout"}
    monkeypatch.setattr(
        gpu_steps.importlib.util, "find_spec", lambda name: None if name in missing else real(name)
    )
    steps, notes = gpu_steps.short_steps(tmp_path, None)
    (tests,) = [step for step in steps if step.name == "tests"]
    assert not {"-n", "--dist", "--timeout"} & set(tests.command)
    assert notes == [
        "xdist is not installed: the tests run without -n 14 --dist worksteal",
        "pytest_timeout is not installed: the tests run without --timeout 60 --timeout-method thread",
    ]


def test_the_pass_takes_five_minutes_at_most(tmp_path):
    steps, _ = gpu_steps.short_steps(tmp_path, "abc")
    assert [step.name for step in steps] == ["smoke", "tests", "speed"]
    assert steps[0].command[-4:] == ["--out", str(tmp_path), "--commit", "abc"]
    assert sum(step.limit_s + gpu.GRACE_S for step in steps) <= 300
    assert all("abc" in step.command for step in steps if step.name != "tests")
    full, _ = gpu_steps.full_steps(tmp_path, "abc")
    assert [step.limit_s for step in full] == [None] * 4


@pytest.mark.parametrize(
    ("gpu_name", "folder"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA-H100-80GB-HBM3"),
        ("AMD Instinct(TM) MI300X/", "AMD-Instinct-TM-MI300X"),
    ],
)
def test_names(gpu_name, folder):
    assert gpu.name_of(gpu_name) == folder
    assert gpu.name_of(None) == "unknown-gpu"


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr("bench.__main__.has_gpu", lambda: False)
    assert gpu.run(type("Options", (), dict(plan=False, full=False))()) == 2
    assert capsys.readouterr().err == "gpu: not measured. It needs a GPU, and none was found.\n"


def test_make_gpu():
    """`make gpu` would run the pass, also when make itself runs these tests."""
    outside_of_make = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    for options, expected in (((), ""), (("FULL=1",), " --full")):
        done = subprocess.run(
            ["make", "--dry-run", "gpu", "PYTHON=python3", "RESULTS=somewhere", "COMMIT=abc", *options],
            cwd=gpu.ROOT,
            env=outside_of_make,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == f"python3 -m bench gpu --out somewhere --commit abc{expected}"


@pytest.fixture
def plan(monkeypatch, capsys):
    """Exit status and printed lines of the plan for steps with this limit."""

    def plan(limit_s):
        steps = [step("smoke", "", limit_s), step("tests", "")]
        monkeypatch.setattr(gpu_plan, "short_steps", lambda *_: (steps, []))
        status = gpu_plan.run(type("Options", (), dict(commit=None))())
        return status, capsys.readouterr().out.splitlines()

    monkeypatch.setenv("TRITON_CACHE_DIR", "restored afterwards")
    monkeypatch.setattr(gpu_plan, "of_tests", lambda processes: dict(note="not counted: a stand-in"))
    return plan


def test_the_plan(plan, monkeypatch):
    """The plan counts what one check of smoke compiles for a GPU, in a process of its own."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    one = [case for case in cases() if str(case) == "rms_norm bf16 768"]
    monkeypatch.setattr(gpu_plan, "cases", lambda: one)
    monkeypatch.setattr(gpu_plan, "LAYERS", ())
    status, printed = plan(1e6)
    assert status == 0
    name, _, kernels, *_ = (cell.strip() for cell in printed[2].strip("|").split("|"))
    assert (name, kernels) == ("smoke", "3")  # forward, backward, and what adds the column sums
    assert printed[-2:] == ["tests: not counted: a stand-in", "what was counted fits"]


def test_a_plan_that_does_not_fit(plan, monkeypatch):
    figures = dict(kernels=3, compile_s=1.0, cpu_s=2.0, expected_s=61.0)
    monkeypatch.setattr(gpu_plan, "of_smoke", lambda processes: figures)
    assert plan(61.0)[0] == 0
    status, printed = plan(60.0)
    assert status == 1
    assert printed[-1] == "WRONG: a step does not fit its limit"


def test_what_tests_compile_is_counted(tmp_path):
    """What tests compile is counted although conftest.py tells their processes to interpret."""
    shutil.copy(SUITES / "compiles.py", tmp_path / "test_some.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    environment = dict(os.environ, TRITON_INTERPRET="1", TRITON_CACHE_DIR=str(tmp_path / "cache"))
    environment |= dict(
        PYTEST_PLUGINS="bench.gpu_pass.compiles", BENCH_COMPILES=str(tmp_path), PYTHONPATH=str(gpu.ROOT)
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_some.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (counts,) = map(json.loads, (path.read_text() for path in tmp_path.glob("*.json")))
    assert counts["kernels"] == ["layer_norm_forward_kernel"]
    assert counts["compile_s"] > 0
    assert counts["cpu_s"] > 0
