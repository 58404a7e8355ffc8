"""The ledger: what it counts of compiled code with the grids of a GPU, and what is committed of it."""

import functools
import json
import os
import shutil

import programs
import pytest
import torch
import triton
from support.processes import TESTS

from bench.harness.result_files import load, records_of
from bench.operations import OPERATIONS, cases
from bench.operations.case import cases_of
from bench.perf import ledger
from bench.perf.instructions.gpu_model import H100

ROOT = TESTS.parent
PINNED = triton.__version__.startswith("3.7.")  # a compiler may leave out a load that nothing needs


@pytest.fixture(scope="module")
def host():
    """The lab's GPU of this session; module scope sets it up before memory is guarded."""
    return triton.runtime.driver.active


MEASURED = [name for name, operation in OPERATIONS.items() if operation.ledger]
# which take a second each; the last has outputs without a gradient
SAMPLE = "layer_norm bf16 264x4096", "dropout bf16 8448x1024", "instance_norm bf16 32x64x64x64"


@functools.cache
def committed():
    return {
        (record["case"], record["direction"]): record
        for runs in load(ROOT / "bench/results/no-gpu", "ledger").values()
        for record in records_of(runs)
    }


def test_the_committed_ledger_has_every_case():
    assert committed().keys() == {(str(case), d) for case in cases("ledger") for d in ledger.DIRECTIONS}
    assert {record["multiprocessors"] for record in committed().values()} == {H100.multiprocessors}


@pytest.fixture(
    scope="module",
    params=[
        SAMPLE,
        *(pytest.param([*map(str, cases("ledger", [n]))], marks=pytest.mark.slow) for n in MEASURED),
    ],
    ids=["sample", *MEASURED],
)
def counted_now(request, host):
    return [r for case in cases("ledger") if str(case) in request.param for r in ledger.measure(case, host)]


def test_the_committed_ledger_is_what_the_kernels_move(counted_now, host):
    assert counted_now
    for record in counted_now:
        expected = committed()[record["case"], record["direction"]]
        if PINNED and host.arch == ledger.ARCH:
            assert record == expected
        else:
            assert record["moved_bytes"] == pytest.approx(expected["moved_bytes"], rel=2e-3)


@pytest.fixture(scope="module", params=[264, 2112])
def backward_of_rows(request, host):
    (case,) = cases_of("layer_norm", f"{request.param}x1024")
    return request.param, list(ledger.measure(case, host))[1]


def test_partial_sums_count_as_many_times_as_a_gpu_has_them(backward_of_rows):
    """With one multiprocessor there would be a row of them; with these there are `programs`."""
    rows, record = backward_of_rows
    main, sums = record["launches"]
    programs, cols = main["grid"][1], 1024
    assert programs >= 33, main
    partial_sums = 2 * 4 * cols * programs
    assert sums["bytes"] == partial_sums + 2 * 2 * cols
    beside = main["bytes"] - 3 * 2 * rows * cols - partial_sums
    assert 0 < beside < 0.02 * main["bytes"], "weight and statistics"
    assert record["moved_bytes"] == main["bytes"] + sums["bytes"]
    assert record["least_bytes"] == 3 * 2 * rows * cols


def test_operators_of_torch_that_move_memory():
    x = torch.randn(100)
    with ledger.Operators() as operators:
        x.new_empty(3)  # not torch.empty, which the suite fills
        x.view(10, 10).t()[2:].unsqueeze(0)
        x.detach()
    assert operators.moved == []
    with ledger.Operators() as operators:
        x.clone()
        x.add_(1)
        x.view(10, 10).t().contiguous().sum()
    names = [name for name, _ in operators.moved]
    assert names == ["aten::clone", "aten::add_", "aten::clone", "aten::sum"]
    assert operators.moved[0] == ("aten::clone", 2 * 400)


PLANTED = {
    "a read of other elements": (
        "kernels/dropout/elements.py",
        "    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)\n",
        "    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)\n"
        "    x += tl.load(x_ptr + (offsets + elements // 2) % elements).to(COMPUTE_DTYPE)\n",
    ),
    "an extra launch": (
        "kernels/dropout/__init__.py",
        "    y = torch.empty_like(x) if out is None else out\n",
        "    y = torch.empty_like(x) if out is None else out\n"
        "    if out is None:\n"
        "        dropout(x, p, seed, out=y)\n",
    ),
    "a copy": (
        "normreg/ops/dropout.py",
        "kernels.dropout(x, p, seed, x if",
        "kernels.dropout(x.clone(), p, seed, x if",
    ),
}


@pytest.mark.some(1)
@pytest.mark.parametrize("fault", PLANTED)
def test_the_ledger_shows_what_is_planted_in_a_kernel(fault, tmp_path):
    for room in ("bench", "kernels", "normreg"):
        shutil.copytree(
            ROOT / room, tmp_path / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    file, was, now = PLANTED[fault]
    text = (tmp_path / file).read_text()
    assert text.count(was) == 1
    (tmp_path / file).write_text(text.replace(was, now))
    path = os.pathsep.join((str(tmp_path), str(TESTS)))
    forward = json.loads(programs.compiling("ledger_of_dropout", PYTHONPATH=path).stdout)
    ratio = round(forward["moved_bytes"] / forward["least_bytes"], 4)  # a seed is loaded as well
    launches, operators = len(forward["launches"]), [one["name"] for one in forward["torch_operators"]]
    expected = {
        "a read of other elements": (1.5, 1, []),
        "an extra launch": (2.0, 2, []),
        "a copy": (2.0, 1, ["aten::clone"]),
    }
    assert (ratio, launches, operators) == expected[fault]
