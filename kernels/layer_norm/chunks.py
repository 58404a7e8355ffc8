"""LayerNorm of rows too wide to be held, whose formulas are in `layer_norm`: in chunks, one after another.

The forward reads a row twice. The backward finds c1 and c2 here; `tile` does the rest in blocks of columns.
"""

import triton
import triton.language as tl

from normreg.kernels.device.rows import (
    Parameters,
    Results,
    Statistics,
    less_mean,
    load,
    load_mean,
    load_parameter,
    load_spread,
    load_x_hat,
    row_strides,
    row_tile,
    rows_apart,
    scale_and_shift,
    store,
    store_statistics,
)
from normreg.kernels.device.statistics import (
    Mean,
    compute_dtype,
    divide,
    rounded_mean,
    rstd_of,
    two_sums,
)


@triton.jit(do_not_specialize=["rows", "cols", "stride"])
def layer_norm_forward_chunks_kernel(
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
    row_mask = row < left
    offsets = base + row[:, None] * stride_row
    x_base, x_offsets = rows_apart(stride, first_row, row, tl.zeros([1], tl.int32), 0, offsets, TILE.vector)
    x_ptr += x_base + x_offsets
    y_ptr = results.y + offsets

    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    squares = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    high = tl.zeros([BLOCK_ROWS], COMPUTE_DTYPE)  # and low: the mean of the first chunk
    low = tl.zeros([BLOCK_ROWS], COMPUTE_DTYPE)
    for start in range(0, cols, BLOCK_COLS):
        col = start + tl.arange(0, BLOCK_COLS)
        mask = row_mask[:, None] & (col < cols)[None, :]
        x = load(x_ptr, col[None, :] * stride_col, mask, COMPUTE_DTYPE)
        if CENTERED:
            if start == 0:
                chunk = tl.minimum(cols, BLOCK_COLS)
                high = rounded_mean(x, chunk, 1)
                low = divide(tl.sum(tl.where(mask, x - high[:, None], 0.0), 1), chunk)
            x = tl.where(mask, x - high[:, None] - low[:, None], 0.0)
            total += x
        squares += x * x
    mean = None
    m2 = tl.sum(squares, 1)
    if CENTERED:
        total = tl.sum(total, 1)
        rest = divide(total, cols)  # what the first chunk's mean lacks
        mean = Mean(high, low + rest)
        m2 -= total * rest
    rstd = rstd_of(divide(m2, cols), eps)

    for start in range(0, cols, BLOCK_COLS):
        col = start + tl.arange(0, BLOCK_COLS)
        mask = row_mask[:, None] & (col < cols)[None, :]
        x = load(x_ptr, col[None, :] * stride_col, mask, COMPUTE_DTYPE)
        y = scale_and_shift(less_mean(x, mean) * rstd[:, None], parameters, col, cols)
        store(y_ptr, col[None, :] * stride_col, y, mask)

    store_statistics(results.statistics, mean, rstd, first_row + row, row_mask)


@triton.jit(do_not_specialize=["rows", "cols"])
def layer_norm_backward_sums_kernel(
    dy_ptr,  # [samples, rows, cols], laid out as `rows` says; so is x
    x_ptr,
    weight_ptr,  # [cols] or None
    statistics: Statistics,  # c1 and c2 are stored, [samples, rows]
    rows,
    cols,  # the contiguous one of rows and cols in vectors
    CENTERED: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr,
    TILE: tl.constexpr,
):
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty, dy_ptr.dtype.element_ty)
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    rows, cols, stride_row, stride_col = row_strides(rows, cols, TILE.vector, CHANNELS_FIRST)
    first_row, left, base = row_tile(tl.program_id(0), rows, cols, stride_row, CHANNELS_FIRST, BLOCK_ROWS)
    row = tl.arange(0, BLOCK_ROWS)
    row_mask = row < left
    dy_ptr += base + row[:, None] * stride_row
    x_ptr += base + row[:, None] * stride_row
    mean = None
    if CENTERED:
        mean = load_mean(statistics.saved, first_row + row, row_mask)
    rstd = load_spread(statistics.saved, first_row + row, row_mask, CENTERED)

    x_hat_wdy = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    wdys = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    for start in range(0, cols, BLOCK_COLS):
        col = start + tl.arange(0, BLOCK_COLS)
        mask = row_mask[:, None] & (col < cols)[None, :]
        offsets = col[None, :] * stride_col
        wdy = load(dy_ptr, offsets, mask, COMPUTE_DTYPE)
        if weight_ptr is not None:
            wdy *= load_parameter(weight_ptr, col, cols, COMPUTE_DTYPE)
        x_hat_wdy += load_x_hat(x_ptr, offsets, mask, mean, rstd, COMPUTE_DTYPE) * wdy
        if CENTERED:
            wdys += wdy
    c1, c2 = two_sums(x_hat_wdy, wdys, 1)
    tl.store(statistics.c1 + first_row + row, divide(c1, cols), mask=row_mask)
    if CENTERED:
        tl.store(statistics.c2 + first_row + row, divide(c2, cols), mask=row_mask)
