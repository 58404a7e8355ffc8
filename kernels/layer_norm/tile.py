"""LayerNorm of rows that fit into a tile, whose formulas are in `layer_norm`: several in one, or one.

The backward also takes blocks of the columns of wider rows, whose c1 and c2 `chunks` has found.
"""

import triton
import triton.language as tl

from normreg.kernels.device.rows import (
    Parameters,
    Results,
    Statistics,
    gradient_of_x,
    load,
    load_mean,
    load_parameter,
    load_spread,
    load_x_hat,
    row_strides,
    row_tile,
    rows_apart,
    store,
    store_normalized,
    store_partial,
)
from normreg.kernels.device.statistics import compute_dtype


@triton.jit(do_not_specialize=["rows", "cols", "stride"])
def layer_norm_forward_kernel(
    x_ptr,  # [samples, rows, cols], laid out as `rows` says
    results: Results,  # y like x
    parameters: Parameters,
    rows,
    cols,  # the contiguous one of rows and cols in vectors
    stride,  # from a row of x to the next, in vectors; None where they lie like y's
    eps: tl.float64,
    CENTERED: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr,
    TILE: tl.constexpr,
):
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty)
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    rows, cols, stride_row, stride_col = row_strides(rows, cols, TILE.vector, CHANNELS_FIRST)
    first_row, left, base = row_tile(tl.program_id(0), rows, cols, stride_row, CHANNELS_FIRST, BLOCK_ROWS)
    row = tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_COLS)
    row_mask = row < left
    mask = row_mask[:, None] & (col < cols)[None, :]
    offsets = row[:, None] * stride_row + col[None, :] * stride_col
    x_base, x_offsets = rows_apart(stride, first_row, row, col, base, offsets, TILE.vector)
    x = load(x_ptr + x_base, x_offsets, mask, COMPUTE_DTYPE)
    store_normalized(
        x, results, parameters, base, offsets, mask, first_row + row, row_mask, col, cols, eps, CENTERED, TILE
    )


@triton.jit(do_not_specialize=["rows", "cols", "stride", "tiles"])
def layer_norm_backward_kernel(
    dy_ptr,  # [samples, rows, cols], laid out as `rows` says; so are x and dx
    x_ptr,
    dx_ptr,  # or None
    weight_ptr,  # [cols] or None
    statistics: Statistics,  # c1 and c2 None where TILE covers the row
    partials: Parameters,  # [programs, cols] or None
    rows,
    cols,  # the contiguous one of rows and cols in vectors
    stride,  # from a row of x to the next, in vectors; None where they lie like dy's
    tiles,
    CENTERED: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr,
    IN_BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Every tile of rows in turn, of all columns or of a block of them."""
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty, dy_ptr.dtype.element_ty)
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    STAGES: tl.constexpr = TILE.stages
    rows, cols, stride_row, stride_col = row_strides(rows, cols, TILE.vector, CHANNELS_FIRST)
    col = tl.arange(0, BLOCK_COLS)
    if IN_BLOCKS:
        col += tl.program_id(0) * BLOCK_COLS
    row = tl.arange(0, BLOCK_ROWS)
    dweight = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    dbias = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    weight = None
    if dx_ptr is not None and weight_ptr is not None:
        weight = load_parameter(weight_ptr, col, cols, COMPUTE_DTYPE)

    tl.assume(tl.program_id(1) < tiles)
    for tile in tl.range(tl.program_id(1), tiles, tl.num_programs(1), num_stages=STAGES):
        first_row, left, base = row_tile(tile, rows, cols, stride_row, CHANNELS_FIRST, BLOCK_ROWS)
        row_mask = row < left
        mask = row_mask[:, None] & (col < cols)[None, :]
        offsets = base + row[:, None] * stride_row + col[None, :] * stride_col
        mean = None
        if CENTERED:
            mean = load_mean(statistics.saved, first_row + row, row_mask)
        rstd = load_spread(statistics.saved, first_row + row, row_mask, CENTERED)
        x_base, x_offsets = rows_apart(stride, first_row, row, col, 0, offsets, TILE.vector)
        x_hat = load_x_hat(x_ptr + x_base, x_offsets, mask, mean, rstd, COMPUTE_DTYPE, TILE.whole, STAGES)
        dy = load(dy_ptr, offsets, mask, COMPUTE_DTYPE, STAGES)

        dweight += dy * x_hat
        dbias += dy
        if dx_ptr is not None:
            dx = gradient_of_x(dy, weight, x_hat, rstd, cols, statistics, first_row + row, row_mask, CENTERED)
            store(dx_ptr, offsets, dx, mask)

    store_partial(partials.weight, dweight, col, cols)
    store_partial(partials.bias, dbias, col, cols)
