"""Compares the errors of kernels before and after `interpreter.speed_up`."""

import torch
import triton
import triton.language as tl

from bench.lab import interpreter


@triton.jit
def kernel(x_ptr, CASE: tl.constexpr):
    x = tl.arange(0, 8)
    if CASE == "shapes":
        x + tl.arange(0, 4)
    elif CASE == "ranks":
        tl.store(x_ptr + x, (x[None, :] + x).to(tl.float32))
    elif CASE == "a negative number and an unsigned tensor":
        x.to(tl.uint32) + -1
    elif CASE == "pointers":
        x_ptr + x_ptr
    elif CASE == "a pointer and a float":
        x_ptr + 1.5
    elif CASE == "bits of a float":
        x.to(tl.float32) & x.to(tl.float32)
    elif CASE == "not a power of two":
        tl.zeros((3,), tl.float32)
    elif CASE == "rounding where nothing is":
        x.to(tl.float32, fp_downcast_rounding="rtz")


def error(case):
    try:
        kernel[(1,)](torch.zeros(8), CASE=case)
    except Exception as raised:
        return repr(raised)


cases = (
    "shapes",
    "ranks",
    "a negative number and an unsigned tensor",
    "pointers",
    "a pointer and a float",
    "bits of a float",
    "not a power of two",
    "rounding where nothing is",
)
before = [error(case) for case in cases]
interpreter.speed_up()
assert before == [error(case) for case in cases] == [error(case) for case in cases]
assert None not in before, before
