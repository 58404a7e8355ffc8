"""The smoke run in the interpreter: what it reaches, and that it notices what is wrong."""

import argparse
import contextlib
import json
import multiprocessing
import sys
import time

import forked
import pytest
import stand_in
import torch
from support.sources import kernels

from bench import __main__, smoke
from bench.harness import side_by_side
from bench.harness.budget import Budget
from bench.lab.without_gpu import as_on_a_gpu, noted_launches
from bench.smoke import cases as smoke_cases
from bench.smoke import checks as smoke_checks
from bench.smoke import problems as smoke_problems
from normreg.kernels import launch

QUICK = (
    "batch_norm bf16 with statistics 8x6x5x5",
    "layer_norm bf16 768",
    "dropout bf16 33x129",
)


def test_every_kernel_is_reached(monkeypatch):
    """With the sizes, tiles and grids of a GPU."""
    monkeypatch.setattr(smoke_problems, "ON_A_GPU", True)
    reached = set()
    for case in smoke_cases.cases():
        with as_on_a_gpu(), noted_launches():
            problem = case.problem("cpu")
        with as_on_a_gpu(), noted_launches() as noted:
            smoke_checks.run(problem.ours, smoke_checks.leaves(problem.inputs))
        reached |= {entry.kernel.__name__ for entry in noted}
    assert reached == set(kernels())


def test_every_dtype_of_every_family():
    for family, lines in smoke_cases.TABLE.items():
        dtypes = {dtype for line in lines for dtype in line.dtypes.split()}
        assert {"bf16", "fp32", "fp64"} <= dtypes, family


def options(**given):
    return argparse.Namespace(**(dict(commit="abc", operations=None, processes=0) | given))


@pytest.fixture
def quick(monkeypatch):
    """Three cases, one of each kind of input."""
    wanted = [case for case in smoke_cases.cases() if str(case) in QUICK]
    monkeypatch.setattr(smoke, "cases_of", lambda families=None: wanted)


def test_all_right(quick):
    records = list(smoke.run(options(), Budget()))
    environment, *checks = records
    assert environment["what"] == "environment"
    assert (environment["commit"], environment["torch"]) == ("abc", torch.__version__)
    assert len(environment["triton_key"]) == 16
    assert [record["case"] for record in checks if record["what"] == "agrees"] == list(QUICK)
    assert all(record["ok"] for record in records), smoke.table(records)
    assert smoke.status(records) == 0
    printed = smoke.table(records)
    assert printed.endswith(f"{len(records)} of {len(records)} right")
    if launch.INTERPRET:
        assert "another stream, CUDA graph, host time: not measured: needs a GPU" in printed


def test_right_dropouts():
    record = smoke_checks.do("draws", "dropout")
    assert record["ok"], record


def test_a_budget(quick):
    """What it does not suffice for is named."""
    budget = Budget(0.0)
    (environment,) = smoke.run(options(operations=["layer_norm"]), budget)
    assert environment["ok"]
    assert budget.left_out[0] == f"agrees: {QUICK[0]}"


@pytest.mark.parametrize("part", ["smoke", "gpu"])
def test_help(part, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", part, "--help"])
    with pytest.raises(SystemExit, match="0"):
        __main__.main()
    assert "--out" in capsys.readouterr().out


def test_side_by_side(quick, monkeypatch):
    """The same in processes of their own, however long a busy machine takes to start them."""
    monkeypatch.setattr(smoke, "LIMIT_S", 300)
    with forked.workers():
        alone, together = (list(smoke.run(options(processes=count), Budget())) for count in (0, 2))

    def judged(records):
        return sorted((record["case"], record["ok"], record.get("ours", [])) for record in records)

    assert judged(together) == judged(alone)


class Nothing:
    """A stream or graph on which nothing happens."""

    def __getattr__(self, name):
        return lambda *_: None


@pytest.fixture
def stand_in_gpu(monkeypatch):
    """Calls of a GPU's streams and graphs: a capture runs at once, and a replay changes nothing."""
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, Nothing)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    for name in ("synchronize", "_sleep"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)


@pytest.mark.interpreter  # stands in for the GPU
def test_streams_and_graphs(stand_in_gpu):
    normed, dropped = "layer_norm bf16 768", "dropout bf16 33x129"
    for name in (normed, dropped):
        assert smoke_checks.do("another stream", name) == dict(ok=True)
    assert smoke_checks.do("CUDA graph", normed) == dict(ok=True, found="as in eager mode")
    # which is wrong: every replay has to draw
    assert smoke_checks.do("CUDA graph", dropped) == dict(ok=False, found="the same mask twice")


@pytest.mark.interpreter  # stands in for the GPU
def test_on_a_wrong_stream(stand_in_gpu, monkeypatch):
    """What was launched elsewhere has read the zeros that were there before."""
    real = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda to, x: to if x.shape == (768,) else real(to, x))
    assert smoke_checks.do("another stream", "layer_norm bf16 768") == dict(ok=False, wrong_value=True)


def test_host_times(monkeypatch):
    monkeypatch.setattr(smoke_checks, "CALLS", 1)
    monkeypatch.setattr(smoke_checks, "TURNS", 1)
    record = smoke_checks.do("host time", "LayerNorm 8x768")
    assert record["ok"], record
    for kind in ("without gradient", "with gradient"):
        assert set(record["host_us"][kind]) == {"normreg", "torch"}
        assert min(record["host_us"][kind].values()) > 0


def off_by(amount, wrong):
    """`launch.launch`, after which the kernel's second tensor, its result, is off in one element."""
    real = launch.launch

    def spoiling(call, *tensors, **given):
        real(call, *tensors, **given)
        if call.kernel.fn.__name__ == wrong:
            tensors[1].view(-1)[-1] += amount

    return spoiling


def main(monkeypatch, capsys, *arguments):
    """Exit status and printed records of `python -m bench smoke`."""
    monkeypatch.setattr(sys, "argv", ["bench", "smoke", "--json", "--processes", "0", *arguments])
    status = __main__.main()
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_wrong_value(quick, monkeypatch, capsys):
    """By a tenth of the largest results, in one element."""
    monkeypatch.setattr(launch, "launch", off_by(1.0, "layer_norm_forward_tiles_kernel"))
    status, records = main(monkeypatch, capsys)
    assert status == 1
    wrong = [record for record in records if not record["ok"]]
    assert [record["case"] for record in wrong] == ["layer_norm bf16 768"]
    assert wrong[0]["wrong_value"]
    assert "WRONG agrees, layer_norm bf16 768: ours [" in smoke.table(records)


def test_a_right_value_exits_with_0(quick, monkeypatch, capsys):
    status, records = main(monkeypatch, capsys)
    assert status == 0
    assert len(records) > len(QUICK)


def test_an_exception_is_no_wrong_value(quick, monkeypatch, capsys):
    def refusing(call, *tensors, **given):
        raise RuntimeError("Triton Error [CUDA]: invalid argument\nmore")

    monkeypatch.setattr(launch, "launch", refusing)
    status, records = main(monkeypatch, capsys)
    assert status == 1
    wrong = [record for record in records if not record["ok"]]
    assert len(wrong) >= len(QUICK)
    assert not any(record.get("wrong_value") for record in wrong)
    assert wrong[0]["error"] == "RuntimeError: Triton Error [CUDA]: invalid argument"


def test_nan_is_wrong(quick, monkeypatch, capsys):
    monkeypatch.setattr(launch, "launch", off_by(float("nan"), "layer_norm_forward_tiles_kernel"))
    status, _ = main(monkeypatch, capsys)
    assert status == 1


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (lambda x, keep, scale: torch.where(keep, x, 0), "scaled"),
        (lambda x, keep, scale: x * scale, "share"),
        (lambda x, keep, scale: torch.where(keep.roll(1), x * scale, 0), "as asked for"),
    ],
    ids=["without the scale", "nothing dropped", "another mask"],
)
def test_wrong_dropouts(monkeypatch, spoil, wrong):
    real = smoke_checks.N.dropout

    def spoiled(x, p, *arguments, **given):
        keep = real(torch.ones_like(x), p, *arguments, **given) != 0
        return spoil(x, keep, 1 / (1 - p))

    monkeypatch.setattr(smoke_checks.N, "dropout", spoiled)
    monkeypatch.setattr(smoke_checks.normreg, "dropout_mask", lambda function, x, p: real(x, p) != 0)
    record = smoke_checks.do("draws", "dropout")
    assert not record["ok"]
    assert wrong in record["wrong"]


def test_a_spoiled_process_is_replaced():
    tasks = [("a", name) for name in ("one", "two", "spoils", "three", "dies", "four", "hangs", "five")]
    tasks.insert(1, ("own", "alone"))
    found = {
        task[1]: record for task, record in side_by_side.results(tasks, stand_in.do, 1, 5, alone=("own",))
    }
    assert list(found) == [name for _, name in tasks]
    assert found["one"]["seen"] == ["one"]
    assert found["alone"]["seen"] == ["alone"]
    assert found["spoils"]["seen"] == ["two", "spoils"]
    assert found["three"]["seen"] == ["three"]
    assert found["dies"]["error"] == "the process died: exit code 3"
    assert found["four"]["seen"] == ["four"]
    assert found["hangs"]["error"] == "no answer in 5 s"
    assert found["five"]["seen"] == ["five"]


def test_nobody_waits_for_what_is_left():
    """Where the GPU no longer answers, the others' processes end at once."""
    tasks = [("a", "hangs"), ("a", "hangs"), ("a", "one")]
    begin, others = time.monotonic(), {*multiprocessing.active_children()}
    found = side_by_side.results(tasks, stand_in.do, 3, 600)
    assert next(found)[0] == ("a", "one")
    found.close()
    for process in {*multiprocessing.active_children()} - others:  # killed, which takes a moment
        process.join(30)
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize(
    ("faults", "answers", "expected"),
    [
        ("b", True, "abcdefgh"),
        ("bcdef", True, "abcdefgh"),
        ("bcd", False, "abcd?"),
        ("gh", False, "abcdefgh?"),
    ],
)
def test_whether_the_gpu_still_answers(monkeypatch, faults, answers, expected):
    """After some processes in a row were spoiled another one is asked; without an answer nothing follows."""

    def results(tasks, do, count, limit_s, alone=()):
        for check, name in tasks:
            wrong = name in faults
            yield (check, name), dict(ok=answers) if check == "answers" else dict(ok=not wrong, spoiled=wrong)

    monkeypatch.setattr(side_by_side, "results", results)
    records = list(smoke.by_processes([("agrees", name) for name in "abcdefgh"], 2))
    assert "".join(record["case"].replace("GPU", "?") for record in records) == expected
    assert smoke.status(records) == (1 if answers else 2)
