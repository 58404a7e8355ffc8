"""LayerNorm of rows too wide to be held, whose formulas are in `layer_norm`: in chunks, one after another.

The forward reads a row twice. The backward finds c1 and c2 here; `tile` does the rest in blocks of columns.
"""

import triton
import triton.language as tl

from normreg.kernels.device.rows import (
    Parameters,
    Results,
    Statistics,
    load,
    load_parameter,
    load_x_hat,
    row_strides,
    row_tile,
    scale_and_shift,
    store,
    store_statistics,
)
from normreg.kernels.device.statistics import compute_dtype, merge_moments, moments, rstd_of


@triton.jit(do_not_specialize=["rows", "cols"])
def layer_norm_forward_chunks_kernel(
    x_ptr,  # [samples, rows, cols], laid out as `rows` says
    results: Results,  # y like x; mean and rstd [samples, rows] or None
    parameters: Parameters,
    rows,
    cols,  # the contiguous one of rows and cols in vectors
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
    x_ptr += base + row[:, None] * stride_row
    y_ptr = results.y + (base + row[:, None] * stride_row)

    m2 = tl.zeros([BLOCK_ROWS], COMPUTE_DTYPE)
    mean = None
    if CENTERED:
        shift = load(x_ptr, 0, row_mask[:, None], COMPUTE_DTYPE)
        count = tl.full([], 0.0, COMPUTE_DTYPE)
        mean = tl.zeros([BLOCK_ROWS], COMPUTE_DTYPE)
    for start in range(0, cols, BLOCK_COLS):
        col = start + tl.arange(0, BLOCK_COLS)
        mask = row_mask[:, None] & (col < cols)[None, :]
        x = load(x_ptr, col[None, :] * stride_col, mask, COMPUTE_DTYPE)
        if CENTERED:
            chunk = tl.minimum(cols - start, BLOCK_COLS).to(COMPUTE_DTYPE)
            chunk_mean, chunk_m2 = moments(x - shift, mask, chunk, 1)
            count, mean, m2 = merge_moments(count, mean, m2, chunk, chunk_mean, chunk_m2)
        else:
            m2 += tl.sum(x * x, 1)
    rstd = rstd_of(m2 / cols, eps)

    for start in range(0, cols, BLOCK_COLS):
        col = start + tl.arange(0, BLOCK_COLS)
        mask = row_mask[:, None] & (col < cols)[None, :]
        x = load(x_ptr, col[None, :] * stride_col, mask, COMPUTE_DTYPE)
        if CENTERED:
            x = x - shift - mean[:, None]
        y = scale_and_shift(x * rstd[:, None], parameters, col, cols)
        store(y_ptr, col[None, :] * stride_col, y, mask)

    store_statistics(results, mean, rstd, first_row, row, row_mask)


@triton.jit(do_not_specialize=["rows", "cols"])
def layer_norm_backward_sums_kernel(
    dy_ptr,  # [samples, rows, cols], laid out as `rows` says; so is x
    x_ptr,
    weight_ptr,  # [cols] or None
    statistics: Statistics,  # [samples, rows]; c1 and c2 are stored, c2 None where rows are not centred
    rows,
    cols,  # the contiguous one of rows and cols in vectors
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
    rstd = tl.load(statistics.rstd + first_row + row, mask=row_mask, other=0.0)[:, None]
    mean = None
    shift = None
    if statistics.mean is not None:
        mean = tl.load(statistics.mean + first_row + row, mask=row_mask, other=0.0)[:, None]
        shift = load(x_ptr, 0, row_mask[:, None], COMPUTE_DTYPE)

    c1 = tl.zeros([BLOCK_ROWS], COMPUTE_DTYPE)
    c2 = tl.zeros([BLOCK_ROWS], COMPUTE_DTYPE)
    for start in range(0, cols, BLOCK_COLS):
        col = start + tl.arange(0, BLOCK_COLS)
        mask = row_mask[:, None] & (col < cols)[None, :]
        offsets = col[None, :] * stride_col
        wdy = load(dy_ptr, offsets, mask, COMPUTE_DTYPE)
        if weight_ptr is not None:
            wdy *= load_parameter(weight_ptr, col, cols, COMPUTE_DTYPE)
        x_hat = load_x_hat(x_ptr, offsets, mask, shift, mean, rstd, COMPUTE_DTYPE)
        c1 += tl.sum(x_hat * wdy, 1) / cols
        if statistics.mean is not None:
            c2 += tl.sum(wdy, 1) / cols
    tl.store(statistics.c1 + first_row + row, c1, mask=row_mask)
    if statistics.c2 is not None:
        tl.store(statistics.c2 + first_row + row, c2, mask=row_mask)
