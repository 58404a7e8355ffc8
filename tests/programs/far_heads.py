"""Heads beyond 2^31 elements: keys, which lie in two strides, behind a tile of queries."""

import torch
import torch.nn.functional as F

from normreg.kernels.qk_norm import tile as kernels
from normreg.kernels.tiling.rows import RowTile
from programs.far import check, on_y, reserved, run_program

TOKENS, HEADS, APART, COLS = 2**21 + 2, 2, 3, 512  # HEADS of APART that a token has in memory
ROWS = TOKENS * HEADS
assert (ROWS - 4) * COLS >= 2**31
LAST_TILE = ROWS // 4 - 1  # of 4 rows
CONSTANTS = dict(FORM=kernels.Form(False), TILE=RowTile(4, COLS, 4, vector=8, whole=True, stages=3))
OF_QUERIES = 4, 1, COLS // 8, COLS // 8
SIZES = *OF_QUERIES, ROWS, HEADS, APART * COLS // 8, COLS // 8, 1, COLS // 8


def last_heads():
    """Keys and weight, of the keys those of the last two tokens, and what these become."""
    x, weight = reserved(TOKENS, APART, COLS), torch.randn(COLS).half()
    x[-2:] = torch.randn(2, APART, COLS)
    last = x[-2:, :HEADS].reshape(4, COLS).float().requires_grad_()
    return x, weight, last, F.rms_norm(last, (COLS,), weight.float(), 1e-5)


def forward():
    x, weight, _, expected = last_heads()
    y, queries = reserved(ROWS, COLS), torch.randn(4, COLS).half()
    of_q, of_k = (queries, queries.clone(), *[None] * 5), (x, y, None, weight, *[None] * 3)
    programs = (1 + LAST_TILE, 0, 0), (1 + ROWS // 4, 1, 1)
    run_program(kernels.qk_norm_forward_kernel, *programs, of_q, of_k, *SIZES, 1e-5, **CONSTANTS)
    check(y[-4:], expected)


def backward():
    x, weight, last, y = last_heads()
    dy, dx, statistics = reserved(ROWS, COLS), reserved(ROWS, COLS), reserved(ROWS, dtype=torch.float32)
    dy[-4:] = torch.randn(4, COLS)
    statistics[-4:] = last.square().mean(1).add(1e-5).rsqrt().detach()
    of_k = dy, x, dx, weight, statistics, *[None] * 4
    programs = on_y((0,), (ROWS // 4,))  # the first of so many, which has the last tile of keys
    run_program(kernels.qk_norm_backward_kernel, *programs, (None,) * 9, of_k, *SIZES, **CONSTANTS)
    check(dx[-4:], *torch.autograd.grad(y, last, dy[-4:].float()))


CASES = {"heads_forward": (forward,), "heads_backward": (backward,)}
