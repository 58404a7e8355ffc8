"""The norms of queries and keys, heads in tiles: several in one, or one. The formulas are in `qk_norm`.

A tile is [rows, cols], each row a head of a token. Rows are numbered as they lie in memory: so many heads a
token, a stride apart, and tokens another stride apart. What a kernel writes has no gaps between rows.
"""

from typing import NamedTuple

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
    store,
    store_normalized,
    store_partial,
)
from normreg.kernels.device.statistics import compute_dtype

OF_HEADS = "rows", "heads", "stride_token", "stride_head"
SIZES = [*(f"{of}_{size}" for of in "qk" for size in OF_HEADS), "cols"]


class Forward(NamedTuple):
    """What the forward reads and writes of queries, or of keys."""

    x: tl.tensor  # [rows, cols], rows where strides say; y without gaps
    y: tl.tensor
    statistics: tl.tensor  # or None
    weight: tl.tensor  # [cols] or None; so is the bias
    bias: tl.tensor


class Backward(NamedTuple):
    """What the backward reads and writes of queries, or of keys: all None where nothing of them is wanted."""

    dy: tl.tensor  # [rows, cols] without gaps; so is dx
    x: tl.tensor  # rows where strides say
    dx: tl.tensor  # or None
    weight: tl.tensor  # [cols] or None
    statistics: tl.tensor
    dweight: tl.tensor  # [programs, cols] or None; so is dbias
    dbias: tl.tensor


@triton.jit
def tile_of_heads(tile, rows, heads, stride_token, stride_head, cols, TILE: tl.constexpr):
    """row, int64, of a tile, row_mask, col, mask, and offsets of x and of what has no gaps."""
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    first_row = tl.full([], BLOCK_ROWS, tl.int64) * tile
    row = tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_COLS)
    first_token = first_row // heads
    head = (first_row - first_token * heads).to(tl.int32) + row
    token = head // heads
    of_x = (first_token + token) * (stride_token.to(tl.int64) * TILE.vector)
    of_x += (head - token * heads) * (stride_head.to(tl.int64) * TILE.vector)
    row_mask = row < rows - first_row
    mask = row_mask[:, None] & (col < cols)[None, :]
    row = first_row + row
    return row, row_mask, col, mask, of_x[:, None] + col[None, :], row[:, None] * cols + col[None, :]


@triton.jit
def normalize(
    tensors,
    tile,
    rows,
    heads,
    stride_token,
    stride_head,
    cols,
    eps,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
):
    """One tile of queries, or of keys."""
    x_ptr, y_ptr, statistics_ptr, weight_ptr, bias_ptr = tensors
    row, row_mask, col, mask, of_x, of_y = tile_of_heads(
        tile, rows, heads, stride_token, stride_head, cols, TILE
    )
    x = load(x_ptr, of_x, mask, compute_dtype(x_ptr.dtype.element_ty))
    results, parameters = Results(y_ptr, statistics_ptr), Parameters(weight_ptr, bias_ptr)
    store_normalized(x, results, parameters, 0, of_y, mask, row, row_mask, col, cols, eps, CENTERED, TILE)


@triton.jit(do_not_specialize=SIZES)
def qk_norm_forward_kernel(
    q: Forward,
    k: Forward,
    q_rows,
    q_heads,
    q_stride_token,  # strides and cols in vectors
    q_stride_head,
    k_rows,
    k_heads,
    k_stride_token,
    k_stride_head,
    cols,
    eps: tl.float64,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
):
    """A program a tile: those of queries first, then those of keys."""
    cols = cols * TILE.vector
    q_tiles = tl.cdiv(q_rows, TILE.rows)
    tile = tl.program_id(0)
    if tile < q_tiles:
        normalize(q, tile, q_rows, q_heads, q_stride_token, q_stride_head, cols, eps, CENTERED, TILE)
    else:
        tile -= q_tiles
        normalize(k, tile, k_rows, k_heads, k_stride_token, k_stride_head, cols, eps, CENTERED, TILE)


@triton.jit
def gradients(
    tensors, first, rows, heads, stride_token, stride_head, cols, CENTERED: tl.constexpr, TILE: tl.constexpr
):
    """The tiles of queries, or of keys, that this program has from the first on, and sums over their rows."""
    dy_ptr, x_ptr, dx_ptr, weight_ptr, saved_ptr, dweight_ptr, dbias_ptr = tensors
    DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty, dy_ptr.dtype.element_ty)
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    STAGES: tl.constexpr = TILE.stages
    dweight = tl.zeros([BLOCK_ROWS, BLOCK_COLS], DTYPE)
    dbias = tl.zeros([BLOCK_ROWS, BLOCK_COLS], DTYPE)
    weight = None
    if dx_ptr is not None and weight_ptr is not None:
        weight = load_parameter(weight_ptr, tl.arange(0, BLOCK_COLS), cols, DTYPE)

    for tile in tl.range(first, tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(1), num_stages=STAGES):
        row, row_mask, col, mask, of_x, of_y = tile_of_heads(
            tile, rows, heads, stride_token, stride_head, cols, TILE
        )
        mean = None
        if CENTERED:
            mean = load_mean(saved_ptr, row, row_mask)
        rstd = load_spread(saved_ptr, row, row_mask, CENTERED)
        x_hat = load_x_hat(x_ptr, of_x, mask, mean, rstd, DTYPE, TILE.whole, STAGES)
        dy = load(dy_ptr, of_y, mask, DTYPE, STAGES)

        dweight += dy * x_hat
        dbias += dy
        if dx_ptr is not None:
            statistics = Statistics(saved_ptr, None, None)
            dx = gradient_of_x(dy, weight, x_hat, rstd, cols, statistics, row, row_mask, CENTERED)
            store(dx_ptr, of_y, dx, mask)

    col = tl.arange(0, BLOCK_COLS)
    store_partial(dweight_ptr, dweight, col, cols)
    store_partial(dbias_ptr, dbias, col, cols)


@triton.jit(do_not_specialize=SIZES)
def qk_norm_backward_kernel(
    q: Backward,
    k: Backward,
    q_rows,
    q_heads,
    q_stride_token,  # strides and cols in vectors
    q_stride_head,
    k_rows,
    k_heads,
    k_stride_token,
    k_stride_head,
    cols,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Tiles of queries, then of keys, which begin at the programs that had one tile less of queries."""
    cols = cols * TILE.vector
    program = tl.program_id(1)
    if q.dy is not None:
        gradients(q, program, q_rows, q_heads, q_stride_token, q_stride_head, cols, CENTERED, TILE)
    if k.dy is not None:
        first = tl.num_programs(1) - 1 - program
        gradients(k, first, k_rows, k_heads, k_stride_token, k_stride_head, cols, CENTERED, TILE)
