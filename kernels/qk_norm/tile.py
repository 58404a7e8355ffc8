"""The norms of queries and keys, heads in tiles: several in one, or one. The formulas are in `qk_norm`.

A tile is [rows, cols], each row a head of a token. Rows are numbered as they lie in memory: so many heads a
token, a stride apart, and tokens another stride apart. What a kernel writes has no gaps between rows.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from normreg.kernels.device.rows import (
    Parameters,
    Statistics,
    centred,
    gradient_of_x,
    less_mean,
    load,
    load_mean,
    load_parameter,
    load_spread,
    load_x_hat,
    scale_and_shift,
    store,
    store_partial,
    store_statistics,
)
from normreg.kernels.device.statistics import compute_dtype, divide, rstd_of

OF_HEADS = "rows", "heads", "stride_token", "stride_head"
SIZES = [*(f"{of}_{size}" for of in "qk" for size in OF_HEADS), "positions", "cols"]


class Forward(NamedTuple):
    """What the forward reads and writes of queries, or of keys."""

    x: tl.tensor  # [rows, cols], rows where strides say; y without gaps
    y: tl.tensor
    statistics: tl.tensor  # or None
    weight: tl.tensor  # [cols] or None; so is the bias
    bias: tl.tensor
    cos: tl.tensor  # [positions, cols] or None; so is sin
    sin: tl.tensor


class Backward(NamedTuple):
    """What the backward reads and writes of queries, or of keys: all None where nothing of them is wanted."""

    dy: tl.tensor  # [rows, cols] without gaps; so is dx
    x: tl.tensor  # rows where strides say
    dx: tl.tensor  # or None
    weight: tl.tensor  # [cols] or None
    statistics: tl.tensor
    dweight: tl.tensor  # [programs, cols] or None; so is dbias
    dbias: tl.tensor
    cos: tl.tensor  # [positions, cols] or None; so is sin
    sin: tl.tensor


@triton.jit
def tile_of_heads(tile, rows, heads, stride_token, stride_head, positions, TILE: tl.constexpr):
    """row, int64, of a tile, row_mask, and where each row of x begins and of cos, which has no gaps."""
    BLOCK_ROWS: tl.constexpr = TILE.rows
    first_row = tl.full([], BLOCK_ROWS, tl.int64) * tile
    row = tl.arange(0, BLOCK_ROWS)
    first_token = first_row // heads
    head = (first_row - first_token * heads).to(tl.int32) + row
    token = head // heads
    of_x = (first_token + token) * (stride_token.to(tl.int64) * TILE.vector)
    of_x += (head - token * heads) * (stride_head.to(tl.int64) * TILE.vector)
    position = ((first_token % positions).to(tl.int32) + token) % positions
    return first_row + row, row < rows - first_row, of_x, position.to(tl.int64)


@triton.jit
def elements(row_offsets, col):
    return row_offsets[:, None] + col[None, :]


@triton.jit
def partner(col, cols, VECTOR: tl.constexpr):
    """The columns that rotary embedding turns together with these, half a head away."""
    half = cols // 2
    other = tl.where(col < half, col + half, col - half)
    return tl.max_contiguous(tl.multiple_of(other, VECTOR), VECTOR)


@triton.jit
def turned(value, other, cos, sin, col, cols):
    """value cos - other sin in the first half of each head, value cos + other sin in the second."""
    return value * cos + other * tl.where(col < cols // 2, -sin, sin)


@triton.jit
def normalize(
    tensors,
    tile,
    rows,
    heads,
    stride_token,
    stride_head,
    positions,
    cols,
    eps,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
):
    """One tile of queries, or of keys."""
    x_ptr, y_ptr, statistics_ptr, weight_ptr, bias_ptr, cos_ptr, sin_ptr = tensors
    DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty)
    BLOCK_COLS: tl.constexpr = TILE.cols
    row, row_mask, of_x, position = tile_of_heads(
        tile, rows, heads, stride_token, stride_head, positions, TILE
    )
    col = tl.arange(0, BLOCK_COLS)
    mask = row_mask[:, None] & (col < cols)[None, :]
    x = load(x_ptr, elements(of_x, col), mask, DTYPE)
    mean = None
    if CENTERED:
        x, mean = centred(x, mask, cols, TILE)
    rstd = rstd_of(divide(tl.sum(x * x, 1), cols), eps)
    parameters = Parameters(weight_ptr, bias_ptr)
    y = scale_and_shift(x * rstd[:, None], parameters, col, cols)
    if cos_ptr is not None:
        other_col = partner(col, cols, TILE.vector)
        other = less_mean(load(x_ptr, elements(of_x, other_col), mask, DTYPE), mean)
        other = scale_and_shift(other * rstd[:, None], parameters, other_col, cols)
        angle = elements(position * cols, col)
        cos = load(cos_ptr, angle, mask, DTYPE)
        y = turned(y, other, cos, load(sin_ptr, angle, mask, DTYPE), col, cols)
    store(y_ptr, elements(row * cols, col), y, mask)
    store_statistics(statistics_ptr, mean, rstd, row, row_mask)


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
    positions,  # of tokens, after which they begin anew
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
        normalize(
            q, tile, q_rows, q_heads, q_stride_token, q_stride_head, positions, cols, eps, CENTERED, TILE
        )
    else:
        tile -= q_tiles
        normalize(
            k, tile, k_rows, k_heads, k_stride_token, k_stride_head, positions, cols, eps, CENTERED, TILE
        )


@triton.jit
def gradients(
    tensors,
    first,
    rows,
    heads,
    stride_token,
    stride_head,
    positions,
    cols,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
):
    """The tiles of queries, or of keys, that this program has from the first on, and sums over their rows."""
    dy_ptr, x_ptr, dx_ptr, weight_ptr, saved_ptr, dweight_ptr, dbias_ptr, cos_ptr, sin_ptr = tensors
    DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty, dy_ptr.dtype.element_ty)
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    STAGES: tl.constexpr = TILE.stages
    col = tl.arange(0, BLOCK_COLS)
    dweight = tl.zeros([BLOCK_ROWS, BLOCK_COLS], DTYPE)
    dbias = tl.zeros([BLOCK_ROWS, BLOCK_COLS], DTYPE)
    weight = None
    if dx_ptr is not None and weight_ptr is not None:
        weight = load_parameter(weight_ptr, col, cols, DTYPE)

    for tile in tl.range(first, tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(1), num_stages=STAGES):
        row, row_mask, of_x, position = tile_of_heads(
            tile, rows, heads, stride_token, stride_head, positions, TILE
        )
        mask = row_mask[:, None] & (col < cols)[None, :]
        mean = None
        if CENTERED:
            mean = load_mean(saved_ptr, row, row_mask)
        rstd = load_spread(saved_ptr, row, row_mask, CENTERED)
        x_hat = load_x_hat(x_ptr, elements(of_x, col), mask, mean, rstd, DTYPE, TILE.whole, STAGES)
        dy = load(dy_ptr, elements(row * cols, col), mask, DTYPE, STAGES)
        if cos_ptr is not None:
            other_col = partner(col, cols, TILE.vector)
            other = load(dy_ptr, elements(row * cols, other_col), mask, DTYPE, STAGES)
            cos = load(cos_ptr, elements(position * cols, col), mask, DTYPE, STAGES)
            sin = load(sin_ptr, elements(position * cols, other_col), mask, DTYPE, STAGES)
            dy = turned(dy, other, cos, -sin, col, cols)

        dweight += dy * x_hat
        dbias += dy
        if dx_ptr is not None:
            statistics = Statistics(saved_ptr, None, None)
            dx = gradient_of_x(dy, weight, x_hat, rstd, cols, statistics, row, row_mask, CENTERED)
            store(dx_ptr, elements(row * cols, col), dx, mask)

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
    positions,  # of tokens, after which they begin anew
    cols,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Tiles of queries, then of keys, which begin at the programs that had one tile less of queries."""
    cols = cols * TILE.vector
    program = tl.program_id(1)
    if q.dy is not None:
        gradients(q, program, q_rows, q_heads, q_stride_token, q_stride_head, positions, cols, CENTERED, TILE)
    if k.dy is not None:
        first = tl.num_programs(1) - 1 - program
        gradients(k, first, k_rows, k_heads, k_stride_token, k_stride_head, positions, cols, CENTERED, TILE)
