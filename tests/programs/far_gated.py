"""Rows beyond 2^31 elements: RMSNorm and a gate."""

import torch

from bench.operations.rms_norm_gated import in_wider
from normreg.kernels import gated_norm
from normreg.kernels.tiling.rows import RowTile
from programs.far import COLS, LAST_TILE, ROWS, check, on_y, reserved, run_program

VECTORS = COLS // 8
SIZES = ROWS, 1, VECTORS, VECTORS, VECTORS, VECTORS, VECTORS  # one group; cols, and strides of x and gate
CONSTANTS = dict(ACT="silu", SHARED=False, TILE=RowTile(4, COLS, 4, vector=8, stages=3))
LAST = (LAST_TILE, 0, 0), (ROWS // 4, 1, 1)


def gated(norm_first):
    """The last four rows of a forward and a backward."""
    x, gate, y, dy, dx, dgate = (reserved(ROWS, COLS) for _ in range(6))
    statistics = reserved(ROWS, dtype=torch.float32)
    for t in (x, gate, dy):
        t[-4:] = torch.randn(4, COLS)
    weight, bias = torch.randn(2, COLS).half()
    last = [t[-4:].float().requires_grad_() for t in (x, gate)]
    expected = in_wider(*last, weight.float(), bias.float(), norm_before_gate=norm_first)
    constants = dict(CONSTANTS, NORM_FIRST=norm_first)
    kernels = gated_norm.gated_norm_forward_kernel, gated_norm.gated_norm_backward_kernel
    run_program(kernels[0], *LAST, x, gate, y, statistics, weight, bias, *SIZES, 1e-5, **constants)
    check(y[-4:], expected)
    elements = dy, x, gate, dx, dgate, weight, bias, statistics
    run_program(kernels[1], *on_y(*LAST), *elements, None, None, None, None, *SIZES, **constants)
    for ours, theirs in zip((dx, dgate), torch.autograd.grad(expected, last, dy[-4:].float()), strict=True):
        torch.testing.assert_close(ours[-4:].float(), theirs, rtol=4e-3, atol=4e-3)


CASES = {"gated_norm_before_the_gate": (gated, True), "gated_norm_behind_the_gate": (gated, False)}
