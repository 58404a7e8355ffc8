"""Masks beyond 2^31 elements: dropout of elements and groups, and what is fused with it."""

import torch
import torch.nn.functional as F
import triton.language as tl

from normreg.kernels import dropout
from normreg.kernels.dropout import add as dropout_add
from normreg.kernels.dropout import add_norm as dropout_add_norm
from normreg.kernels.dropout import bias_act as bias_act_dropout
from normreg.kernels.tiling.rows import RowTile
from programs.far import COLS, ROWS, check, on_y, reserved, run_program

GROUPED = dropout.dropout_grouped_kernel


def of_channels():
    groups, positions = 2**21 + 2, 1024
    x, y = reserved(groups, positions), reserved(groups, positions)
    x[-2:] = 1
    program = groups // 2 - 1
    run_program(
        GROUPED,
        (program, 0, 0),
        (program + 1, 1, 1),
        *(x, y, None),
        *(5, groups, positions // 8, 2**31, 2.0, 0.0, 0.0),
        GROUPS_LAST=False,
        TILE=RowTile(2, 1024, 4, vector=8),
    )
    check(y[-2:], dropout.dropout(torch.ones(groups), 0.5, 5)[-2:, None].expand(2, positions))


def of_channels_last():
    samples, channels, spatial = 2**21 + 1, 64, 16
    x, y = reserved(samples, spatial, channels), reserved(samples, spatial, channels)
    x[-1] = 1
    run_program(
        GROUPED,
        (samples - 1, 0, 0),
        (samples, 1, 1),
        *(x, y, None),
        *(5, channels // 8, spatial, 2**31, 2.0, 0.0, 0.0),
        GROUPS_LAST=True,
        TILE=RowTile(64, 16, 4, vector=8),
    )
    assert set(y[-1].unique().tolist()) == {0.0, 2.0}
    assert (y[-1] == y[-1, :1]).all()


def of_elements_channels_last():
    samples, channels, positions = 2**21 + 1, 64, 16
    x, y = reserved(samples, positions, channels), reserved(samples, positions, channels)
    x[-1] = 1
    run_program(
        dropout.dropout_channels_last_kernel,
        (samples - 1, 0, 0),
        (samples, 1, 1),
        *(x, y, None),
        *(5, channels // 8, positions // 8, 2**15, 2.0, 0.0, 0.0),
        BITS=16,
        TILE=RowTile(64, 16, 4, vector=8),
    )
    assert set(y[-1].unique().tolist()) == {0.0, 2.0}
    assert 400 < (y[-1] == 0).sum() < 600


def of_samples():
    groups, positions = 2, 2**31 + 2048
    x, y = reserved(groups, positions), reserved(groups, positions)
    x[1, -2048:] = 1
    blocks = positions // 2048
    run_program(
        GROUPED,
        (2 * blocks - 1, 0, 0),
        (2 * blocks, 1, 1),
        *(x, y, None),
        *(5, groups, positions // 8, 2**32 - 1, 2.0, 0.0, 0.0),
        GROUPS_LAST=False,
        TILE=RowTile(1, 2048, 4, vector=8),
    )
    assert set(y[1, -2048:].tolist()) == {2.0}


def drop(x, y):
    """The last 2048 elements of flat tensors, with p = 1/2."""
    elements = x.numel()
    program = elements // 2048 - 1
    run_program(
        dropout.dropout_kernel,
        (program, 0, 0),
        (program + 1, 1, 1),
        *(x, y, None),
        *(5, elements // 8, 2**15, 2.0, 0.0, 0.0),
        BITS=16,
        CALLS=256,
        VECTOR=8,
    )


def of_elements():
    x, y = reserved(2**31 + 2048), reserved(2**31 + 2048)
    x[-2048:] = 1
    drop(x, y)
    assert set(y[-2048:].tolist()) == {0.0, 2.0}


DRAWN = dict(BITS=16, SHARED=False)
FEW = DRAWN | dict(TILE=RowTile(2, COLS, 4, vector=8))
SEED, SIZES, KEPT = (None, 5), (ROWS, COLS // 8), (2**15, 2.0)
DECIDED = *SEED, *SIZES, ROWS, *KEPT
LAST_ROWS = (ROWS // 2 - 1, 0, 0), (ROWS // 2, 1, 1)


def flat():
    """x of ones, z, and what of the last two rows is kept, as dropout draws it."""
    x, z = reserved(ROWS, COLS), reserved(ROWS, COLS)
    x[-4:] = 1
    drop(x, z)
    keep = z[-2:] != 0
    z[-2:] = 0
    assert 0 < keep.sum() < 2048
    return x, z, keep


def and_sum_and_norm():
    x, z, keep = flat()
    y, statistics = reserved(ROWS, COLS), reserved(ROWS, 1, dtype=torch.float32)
    forward = x, x, z, y, statistics, None, None, None, None, *DECIDED, 1e-5
    of_rms = dict(Z_DTYPE=tl.float16, CENTERED=False)
    run_program(dropout_add_norm.dropout_add_norm_forward_kernel, *LAST_ROWS, *forward, **of_rms, **FEW)
    check(z[-2:], 1 + 2 * keep)
    check(y[-2:], F.rms_norm(z[-2:].float(), (COLS,)))
    z[-1], y[-1] = 0, 0
    run_program(
        dropout_add_norm.dropout_add_norm_forward_tiles_kernel,
        (ROWS - 1, 0, 0),
        (ROWS, 1, 1),
        *forward,
        **of_rms,
        TILE=RowTile(1, COLS // 4, 4, tiles=4, packed=True, vector=8),
        **DRAWN,
    )
    check(z[-1], 1 + 2 * keep[-1])
    check(y[-1], F.rms_norm(z[-1].float(), (COLS,)))
    dy, dx = reserved(ROWS, COLS), reserved(ROWS, COLS)
    dy[-2:] = torch.randn(2, COLS)
    run_program(
        dropout_add_norm.dropout_add_norm_backward_kernel,
        *on_y(*LAST_ROWS),
        *(dy, z, dy, None, dx, y, None, None, None, statistics, None, None, None, None, None),
        *DECIDED,
        CENTERED=False,
        **FEW,
    )
    last = z[-2:].float().requires_grad_()
    (dz,) = torch.autograd.grad(F.rms_norm(last, (COLS,)), last, dy[-2:].float())
    check(y[-2:], dz + dy[-2:])
    check(dx[-2:], (dz + dy[-2:]) * 2 * keep)


def and_sum():
    x, z, keep = flat()
    program = ROWS * COLS // 2048 - 1
    run_program(
        dropout_add.dropout_add_kernel,
        (program, 0, 0),
        (program + 1, 1, 1),
        *(x, x, z, None, None, None),
        *(5, 1, ROWS * COLS // 8, 1),
        *KEPT,
        **DRAWN,
        TILE=RowTile(1, 2048, 4, vector=8),
    )
    check(z[-2:], 1 + 2 * keep)
    partial = reserved(ROWS // 2, COLS, dtype=torch.float32)
    dz, ones = reserved(ROWS, COLS), torch.ones(COLS)
    dz[-2:] = 3
    run_program(
        dropout_add.dropout_add_backward_kernel,
        *on_y(*LAST_ROWS),
        *(dz, x, z, ones, None, partial),
        *DECIDED,
        **FEW,
    )
    check(z[-2:], 6 * keep)
    check(partial[-1], 6 * keep.float().sum(0))


def behind_bias_and_act():
    x, z, keep = flat()
    bias = torch.randn(COLS)
    run_program(
        bias_act_dropout.bias_act_dropout_forward_kernel,
        *LAST_ROWS,
        *(x, z, bias, *SEED),
        *SIZES,
        *KEPT,
        0.0,
        ACT="silu",
        **FEW,
    )
    check(z[-2:], F.silu(1 + bias) * 2 * keep)
    partial = reserved(ROWS // 2, COLS, dtype=torch.float32)
    run_program(
        bias_act_dropout.bias_act_dropout_backward_kernel,
        *on_y(*LAST_ROWS),
        *(x, x, z, bias, partial, *SEED),
        *SIZES,
        *KEPT,
        0.0,
        ACT=None,
        **FEW,
    )
    check(z[-2:], 2 * keep)
    check(partial[-1], 2 * keep.float().sum(0))


CASES = {
    "dropout of channels": (of_channels,),
    "dropout of channels_last": (of_channels_last,),
    "dropout of channels_last elements": (of_elements_channels_last,),
    "dropout of samples": (of_samples,),
    "dropout": (of_elements,),
    "dropout_add_norm": (and_sum_and_norm,),
    "dropout_add": (and_sum,),
    "bias_act_dropout": (behind_bias_and_act,),
}
