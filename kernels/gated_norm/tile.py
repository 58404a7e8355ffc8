"""RMSNorm and a gate, whose formulas are in `gated_norm`: rows of a group in a tile, several or one."""

from typing import NamedTuple

import triton
import triton.language as tl

from normreg.kernels.device.activations import gate_and_slope, gate_of
from normreg.kernels.device.rows import (
    Parameters,
    Results,
    Statistics,
    gradient_of_x,
    load,
    load_parameter,
    load_spread,
    scale_and_shift,
    store,
    store_partial,
    store_statistics,
)
from normreg.kernels.device.statistics import compute_dtype, divide, rstd_of


class Inputs(NamedTuple):
    """[rows, groups, cols] each, of which cols are contiguous."""

    x: tl.tensor
    gate: tl.tensor


class Elements(NamedTuple):
    """[rows, groups, cols] each: `Inputs`, and beside them contiguous ones; dx or dgate may be None."""

    dy: tl.tensor
    x: tl.tensor
    gate: tl.tensor
    dx: tl.tensor
    dgate: tl.tensor


@triton.jit
def places(row, group, col, stride_row, stride_group, VECTOR: tl.constexpr):
    """Offsets of a tile of rows of a group, [rows, cols]; strides came in vectors."""
    row = row * (stride_row.to(tl.int64) * VECTOR) + group * (stride_group.to(tl.int64) * VECTOR)
    return row[:, None] + col[None, :]


STRIDES = ["x_stride_row", "x_stride_group", "gate_stride_row", "gate_stride_group"]


@triton.jit(do_not_specialize=["rows", "groups", "cols", *STRIDES])
def gated_norm_forward_kernel(
    inputs: Inputs,
    results: Results,  # y [rows, groups, cols], statistics [rows, groups]
    parameters: Parameters,  # [groups, cols], or [cols] where SHARED
    rows,
    groups,
    cols,  # in vectors; so are the strides
    x_stride_row,
    x_stride_group,
    gate_stride_row,
    gate_stride_group,
    eps: tl.float64,
    ACT: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    SHARED: tl.constexpr,
    TILE: tl.constexpr,
):
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(inputs.x.dtype.element_ty)
    DTYPE: tl.constexpr = results.y.dtype.element_ty
    GATE_DTYPE: tl.constexpr = DTYPE if DTYPE.primitive_bitwidth == 16 else COMPUTE_DTYPE
    VECTOR: tl.constexpr = TILE.vector
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    cols *= VECTOR
    tile, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    row = tl.arange(0, BLOCK_ROWS) + tl.full([], BLOCK_ROWS, tl.int64) * tile
    col = tl.arange(0, BLOCK_COLS)
    row_mask = row < rows
    mask = row_mask[:, None] & (col < cols)[None, :]
    x_at = places(row, group, col, x_stride_row, x_stride_group, VECTOR)
    gate_at = places(row, group, col, gate_stride_row, gate_stride_group, VECTOR)
    x = load(inputs.x, x_at, mask, COMPUTE_DTYPE)
    gate = gate_of(load(inputs.gate, gate_at, mask, COMPUTE_DTYPE), ACT, GATE_DTYPE)

    if not NORM_FIRST:
        x *= gate
    rstd = rstd_of(divide(tl.sum(x * x, 1), cols), eps)
    first = 0 if SHARED else group.to(tl.int64) * cols  # of the group's columns of the parameters
    y = scale_and_shift(x * rstd[:, None], parameters, first + col, first + cols)
    if NORM_FIRST:
        y *= gate
    store(results.y, places(row, group, col, groups * cols, cols, 1), y, mask)
    store_statistics(results.statistics, None, rstd, row * groups + group, row_mask)


@triton.jit(do_not_specialize=["rows", "groups", "cols", *STRIDES])
def gated_norm_backward_kernel(
    elements: Elements,
    parameters: Parameters,  # [groups, cols], or [cols] where SHARED
    statistics: Statistics,  # [rows, groups]; c1 and c2 None
    partials: Parameters,  # [programs, groups, cols] or None
    rows,
    groups,
    cols,  # in vectors; so are the strides
    x_stride_row,
    x_stride_group,
    gate_stride_row,
    gate_stride_group,
    ACT: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    SHARED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Every tile of rows of a group in turn."""
    DTYPE: tl.constexpr = elements.x.dtype.element_ty
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(DTYPE)
    VECTOR: tl.constexpr = TILE.vector
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    STAGES: tl.constexpr = TILE.stages
    cols *= VECTOR
    group = tl.program_id(0)
    col = tl.arange(0, BLOCK_COLS)
    first = 0 if SHARED else group.to(tl.int64) * cols  # of the group's columns of the parameters
    weight = None
    if parameters.weight is not None:
        weight = load_parameter(parameters.weight, first + col, first + cols, COMPUTE_DTYPE)
    bias = None
    if NORM_FIRST and parameters.bias is not None:
        bias = load_parameter(parameters.bias, first + col, first + cols, COMPUTE_DTYPE)
    dweight = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    dbias = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)

    tiles = tl.cdiv(rows, BLOCK_ROWS)
    tl.assume(tl.program_id(1) < tiles)
    for tile in tl.range(tl.program_id(1), tiles, tl.num_programs(1), num_stages=STAGES):
        row = tl.arange(0, BLOCK_ROWS) + tl.full([], BLOCK_ROWS, tl.int64) * tile
        row_mask = row < rows
        mask = row_mask[:, None] & (col < cols)[None, :]
        x_at = places(row, group, col, x_stride_row, x_stride_group, VECTOR)
        gate_at = places(row, group, col, gate_stride_row, gate_stride_group, VECTOR)
        at = places(row, group, col, groups * cols, cols, 1)
        x = load(elements.x, x_at, mask, COMPUTE_DTYPE, STAGES)
        dy = load(elements.dy, at, mask, COMPUTE_DTYPE, STAGES)
        gate = load(elements.gate, gate_at, mask, COMPUTE_DTYPE, STAGES)
        rstd = load_spread(statistics.saved, row * groups + group, row_mask, False)
        gate, slope = gate_and_slope(gate, ACT, DTYPE)

        if NORM_FIRST:
            x_hat = x * rstd[:, None]
            normalized = x_hat
            if weight is not None:
                normalized = normalized * weight
            if bias is not None:
                normalized = normalized + bias
            dgate = dy * slope * normalized
            dy *= gate
        else:
            x_hat = x * gate * rstd[:, None]
        dweight += dy * x_hat
        dbias += dy
        dx = gradient_of_x(dy, weight, x_hat, rstd, cols, statistics, row, row_mask, False)
        if not NORM_FIRST:
            dgate = dx * slope * x
            dx *= gate
        store(elements.dx, at, dx, mask)
        store(elements.dgate, at, dgate, mask)

    store_partial(partials.weight, dweight, col, cols, group, groups)
    store_partial(partials.bias, dbias, col, cols, group, groups)
