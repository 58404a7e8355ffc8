"""Accesses outside the tensors of a launch are refused in the interpreter, before they happen."""

import pytest
import torch
import triton
import triton.language as tl

from bench.lab.bounds import OutOfBounds

pytestmark = pytest.mark.interpreter


@triton.jit
def copy_kernel(x_ptr, y_ptr, elements, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < elements
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets + SHIFT, mask=mask, other=0.0), mask=mask)


@triton.jit
def count_kernel(total_ptr):
    tl.atomic_add(total_ptr + tl.arange(0, 4), 1.0)


def copy(x, y, shift=0):
    block = 1024
    copy_kernel[(triton.cdiv(x.numel(), block),)](x, y, x.numel(), SHIFT=shift, BLOCK=block)


def test_an_atomic_outside_every_tensor_is_an_error():
    total = torch.zeros(4)
    count_kernel[(3,)](total)
    assert (total == 3).all()
    with pytest.raises(OutOfBounds, match="an atomic ends 4 bytes past the end of total_ptr"):
        count_kernel[(3,)](total[:3])
    assert (total == 3).all()


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
