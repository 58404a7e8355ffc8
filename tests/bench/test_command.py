"""`python -m bench`: its parts and its arguments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import programs
import pytest
import torch

from bench import __main__
from bench.harness import tables
from bench.operations import cases

ROOT = Path(__file__).parents[2]


def bench(*arguments):
    """Runs `python -m bench` in a new process."""
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_tables_align():
    assert tables.markdown(("name", "n"), [("a", 1), ("long name", 10.5)]) == (
        "| name      |    n |\n| --------- | ---: |\n| a         |    1 |\n| long name | 10.5 |"
    )


def test_parts_that_compile_with_results_in_a_file(tmp_path):
    """The stub driver also lets kernels be freed, which newer Tritons unload; a failure is printed."""
    done = programs.compiling("parts_that_compile", str(tmp_path))
    assert done.stderr == ""
    assert "group_norm_forward" in done.stdout.partition("## static: ")[2].partition("## host: ")[0]
    assert "normreg / plain" in done.stdout.partition("## host: ")[2]
    run = json.loads((tmp_path / "host/instance_norm.json").read_text())["runs"][0]
    assert run["environment"]["commit"] == "abc"
    forward, inference, backward = run["records"]
    samples = forward["samples_us"]
    assert set(samples) == {"normreg", "plain launch", "torch"}
    assert all(len(times) == len(samples["torch"]) > 10 for times in samples.values())
    of_launcher = {"launcher", "allocations", "launches"}
    assert set(forward["parts_us"]) == {"dispatch", "autograd"} | of_launcher
    assert set(inference["parts_us"]) == {"dispatch"} | of_launcher
    assert set(backward["parts_us"]) == of_launcher


def test_without_time_everything_is_left_out_and_said(tmp_path):
    status, printed = forked.bench(tmp_path / "log", "ledger", "--budget", "0")
    assert status == 0, printed
    assert "## ledger: " in printed
    assert f"left out, because the budget was spent: {cases('ledger')[0]}" in printed


def test_speed_says_that_it_needs_a_gpu(tmp_path):
    status, printed = forked.bench(tmp_path / "log", "speed")
    assert (status, printed) == (2, "speed: not measured. It needs a GPU, and none was found.\n")


@pytest.mark.slow
def test_everything_that_this_machine_can_show():
    done = bench("--operations", "dropout", "--budget", "5")
    assert done.returncode == 0, done.stderr
    for part in ("host", "static", "instructions", "ledger", "exactness"):
        assert f"## {part}: " in done.stdout
    if not torch.cuda.is_available():
        assert done.stdout.endswith("speed and models: not measured. They need a GPU, and none was found.\n")


@pytest.fixture
def command_line(monkeypatch):
    """Sets the arguments of this process; what the command does to the environment is undone."""
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", ""))
    return lambda *arguments: monkeypatch.setattr(sys, "argv", ["python -m bench", *arguments])


@pytest.fixture
def commands(monkeypatch):
    """Command lines of the parts' processes, each of which ends at once with the status set for it, or 0."""
    begun, statuses = [], {}

    def run(command):
        begun.append(command)
        return statuses.get(command[3], 0)

    monkeypatch.setattr(__main__.interrupts, "run", run)
    return begun, statuses


@pytest.mark.parametrize("gpu", [False, True])
def test_everything_is_a_process_for_each_part(command_line, commands, monkeypatch, capsys, gpu):
    monkeypatch.setattr(__main__, "has_gpu", lambda: gpu)
    command_line("--budget", "5", "--out", "results", "--commit", "abc", "--json")
    assert __main__.main() == 0
    parts = ["host", "static", "instructions", "ledger", "exactness"] + ["speed", "models"] * gpu
    for command, part in zip(commands[0], parts, strict=True):
        budget = command.pop(5)
        assert command == [
            sys.executable,
            "-m",
            "bench",
            part,
            "--budget",
            "--out",
            "results",
            "--commit",
            "abc",
            "--json",
        ]
        assert 4 < float(budget) <= 5
    said = "" if gpu else "speed and models: not measured. They need a GPU, and none was found.\n"
    assert capsys.readouterr().err == said


def test_a_part_that_fails_ends_everything(command_line, commands):
    begun, statuses = commands
    statuses["static"] = 3
    command_line("--operations", "dropout")
    assert __main__.main() == 3
    assert [command[3:] for command in begun][-1][-2:] == ["--operations", "dropout"]
    assert [command[3] for command in begun] == ["host", "static"]


def test_unknown_operations_are_named(command_line):
    command_line("static", "--operations", "softmax")
    with pytest.raises(SystemExit, match="--operations: softmax: expected some of ada_norm, batch_norm, "):
        __main__.main()


@pytest.mark.parametrize("part", [*__main__.PARTS, "report"])
def test_every_part_has_help(command_line, capsys, part):
    command_line(part, "--help")
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 0
    assert f"python -m bench {part}" in capsys.readouterr().out
