"""The meter finds bad accesses that are planted in kernels of the library and in small kernels."""

import json
import shutil
from pathlib import Path

import programs
import pytest
import torch
import triton
import triton.language as tl

from bench.lab.meter import CACHED_BYTES, Meter, OutOfBounds
from bench.perf.ledger import Operators

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.interpreter

LARGE = CACHED_BYTES // 4 + 1024  # float32 elements


@triton.jit
def copy_kernel(x_ptr, y_ptr, elements, SHIFT: tl.constexpr, TIMES: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < elements
    for _ in range(TIMES):
        x = tl.load(x_ptr + offsets + SHIFT, mask=mask, other=0.0)
    tl.store(y_ptr + offsets, x, mask=mask)


@triton.jit
def count_kernel(total_ptr, x_ptr):
    tl.atomic_add(total_ptr + tl.arange(0, 4), tl.load(x_ptr + tl.program_id(0)))


def copy(x, y, shift=0, times=1):
    block = 1024
    copy_kernel[(triton.cdiv(x.numel(), block),)](x, y, x.numel(), SHIFT=shift, TIMES=times, BLOCK=block)


def test_bytes_of_large_tensors_count_every_time():
    x = torch.randn(LARGE)
    y = torch.empty_like(x)
    with Meter() as meter:
        copy(x, y)
        copy(x, y, times=2)
    assert [launch.kernel for launch in meter.launches] == ["copy_kernel", "copy_kernel"]
    assert [launch.large_bytes for launch in meter.launches] == [2 * 4 * LARGE, 3 * 4 * LARGE]
    assert all(launch.small_bytes == launch.cached_bytes == 0 for launch in meter.launches)


def test_bytes_of_small_tensors_count_once_and_what_is_read_again_apart():
    x = torch.randn(1000)
    y = torch.empty_like(x)
    with Meter() as meter:
        copy(x, y, times=3)
    (launch,) = meter.launches
    assert (launch.large_bytes, launch.small_bytes, launch.cached_bytes) == (0, 2 * 4000, 2 * 4000)


def test_an_atomic_is_a_load_and_a_store():
    with Meter() as meter:
        count_kernel[(3,)](torch.zeros(4), torch.ones(3))
    total, x = meter.launches[0].arguments
    assert (total.loads.total, total.stores.total, x.loads.total) == (3 * 16, 3 * 16, 3 * 4)


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        (
            1,
            r"copy_kernel, program \(0, 0, 0\): a load ends 4 bytes past the end of x_ptr, .*32.* \(100,\)",
        ),
        (-2, r"copy_kernel, program \(0, 0, 0\): a load begins 8 bytes before x_ptr"),
        (10**6, r"a load (begins|ends) [\d,]+ bytes (before|past the end of)"),
    ],
)
def test_an_address_outside_every_tensor_is_an_error(shift, message):
    x = torch.randn(300)[100:200]
    y = torch.full((100,), 7.0)
    with pytest.raises(OutOfBounds, match=message):
        copy(x, y, shift=shift)
    assert (y == 7).all()


def test_an_access_that_runs_from_one_tensor_into_another_is_an_error():
    both = torch.randn(2, 100)
    with pytest.raises(OutOfBounds, match="a load ends 4 bytes past the end of x_ptr"):
        copy(both[0], both[1], shift=1)


def test_a_store_outside_is_refused_before_it_happens():
    x, memory = torch.randn(100), torch.zeros(101)
    with pytest.raises(OutOfBounds, match="a store ends 4 bytes past the end of y_ptr"):
        copy(x, memory[:99])
    assert not memory.any()


def test_operators_of_torch_that_move_memory():
    x = torch.randn(100)
    with Meter() as meter, Operators(meter) as operators:
        x.new_empty(3)  # not torch.empty, which the suite fills
        x.view(10, 10).t()[2:].unsqueeze(0)
        x.detach()
        copy(x, x.new_empty(100))
    assert operators.moved == []
    with Meter() as meter, Operators(meter) as operators:
        x.clone()
        x.add_(1)
        x.view(10, 10).t().contiguous().sum()
    names = [name for name, _ in operators.moved]
    assert names == ["aten::clone", "aten::add_", "aten::clone", "aten::sum"]
    assert operators.moved[0] == ("aten::clone", 2 * 400)


PLANTED = {
    "a double read": (
        "kernels/dropout/elements.py",
        "    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)\n",
        "    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)\n"
        "    x += 0 * tl.load(x_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)\n",
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
    "a read out of bounds": (
        "kernels/dropout/elements.py",
        "tl.load(x_ptr + offsets, mask=mask, ",
        "tl.load(x_ptr + 1 + offsets, mask=mask, ",
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
    status = programs.exit_status("ledger_of_dropout", tmp_path / "log", folder=tmp_path)
    printed = (tmp_path / "log").read_text()
    if fault == "a read out of bounds":
        assert status == 1
        assert "OutOfBounds: dropout_kernel, program (" in printed
        assert "a load ends 4 bytes past the end of x_ptr" in printed
        return
    assert status == 0, printed
    forward = json.loads(printed.splitlines()[-1])
    ratio = forward["moved_bytes"] / forward["least_bytes"]
    launches, operators = len(forward["kernels"]), forward["torch_operators"]
    expected = {
        "a double read": (1.5, 1, []),
        "an extra launch": (2.0, 2, []),
        "a copy": (2.0, 1, ["aten::clone"]),
    }
    assert (ratio, launches, operators) == expected[fault]
