"""Compares every operation before and after `interpreter.speed_up`, bit by bit."""

import itertools

import torch

import normreg
from bench.lab import interpreter
from bench.operations import OPERATIONS, Case, cases
from bench.operations.case import DTYPES
from normreg.kernels import tiling

SHAPES = {2: (5, 32), 3: (3, 2, 32), 4: (2, 32, 3, 5)}
KINDS = sorted({(c.operation, c.layer, len(c.shape), c.channels_last) for c in cases("static")})
tiling.hardware.INTERPRETER_TILE_SCALE = 1
tiling.rows.CHUNK_WORDS = 64


def results():
    dtypes = itertools.cycle(DTYPES.values())
    for held in (8192, 16):  # by the kernels that hold all that a statistic is of, and by the others
        tiling.hardware.TILE_WORDS_FORWARD = tiling.hardware.TILE_WORDS_BACKWARD = held
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
