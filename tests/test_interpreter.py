"""What makes the interpreter faster changes no bit of a result, and hides no error."""

from pathlib import Path

import pytest
from processes import exit_status

ROOT = Path(__file__).parent.parent

EVERY_OPERATION_TWICE = """
import itertools
import torch
import normreg
from bench import interpreter
from bench.operations import OPERATIONS, Case, cases
from bench.operations.case import DTYPES
from normreg.kernels import tiling

SHAPES = {2: (5, 32), 3: (3, 2, 32), 4: (2, 32, 3, 5)}
KINDS = sorted({(c.operation, c.layer, len(c.shape), c.channels_last) for c in cases("static")})
tiling.INTERPRETER_TILE_SCALE = 1
tiling.CHUNK_WORDS = 64

def results():
    dtypes = itertools.cycle(DTYPES.values())
    for held in (8192, 16):  # by the kernels that hold all that a statistic is of, and by the others
        tiling.HELD_WORDS_FORWARD = tiling.HELD_WORDS_BACKWARD = held
        for operation, layer, rank, channels_last in KINDS:
            case = Case(operation, SHAPES[rank], next(dtypes), channels_last, layer=layer)
            torch.manual_seed(0)
            layer = OPERATIONS[operation].layer(normreg, case, dtype=case.dtype)
            x = case.like_input(torch.randn, "cpu").requires_grad_()
            y = layer(x)
            dx, *others = torch.autograd.grad(y, (x, *layer.parameters()), torch.randn_like(y))
            yield str(case), [y.detach(), dx, *others]

before = list(results())
interpreter.speed_up()
after = list(results())
assert len(KINDS) > 20
for (case, was), (_, now) in zip(before, after, strict=True):
    for one, other in zip(was, now, strict=True):
        assert one.stride() == other.stride(), case
        assert torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)), case
"""

ERRORS = """
import torch
import triton
import triton.language as tl
from bench import interpreter

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

cases = ("shapes", "ranks", "a negative number and an unsigned tensor", "pointers", "a pointer and a float",
         "bits of a float", "not a power of two", "rounding where nothing is")
before = [error(case) for case in cases]
interpreter.speed_up()
assert before == [error(case) for case in cases] == [error(case) for case in cases]
assert None not in before, before
"""


@pytest.mark.parametrize("source", [EVERY_OPERATION_TWICE, ERRORS], ids=["results", "errors"])
def test_a_faster_interpreter_is_the_same(tmp_path, source):
    assert exit_status(source, ROOT, tmp_path / "log") == 0, (tmp_path / "log").read_text()
