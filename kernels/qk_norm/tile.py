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


class Form(NamedTuple):
    """Which of the norms, and which of the rotary embeddings behind it."""

    centered: bool
    turned: int = 0  # the first columns of each head that are turned; 0 without angles
    interleaved: bool = False  # each column with its neighbour, not with that half of the turned ones away
    whole: bool = True  # whether all columns of a head are turned


class Forward(NamedTuple):
    """What the forward reads and writes of queries, or of keys."""

    x: tl.tensor  # [rows, cols], rows where strides say; y without gaps
    y: tl.tensor
    statistics: tl.tensor  # or None
    weight: tl.tensor  # [cols] or None; so is the bias
    bias: tl.tensor
    cos: tl.tensor  # [positions, turned] or None; so is sin
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
    cos: tl.tensor  # [positions, turned] or None; so is sin
    sin: tl.tensor


@triton.jit
def tile_of_heads(tile, rows, heads, stride_token, stride_head, positions, TILE: tl.constexpr):
    """row, int64, of a tile, row_mask, where each row of x begins, and its position, which is cos's row."""
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
def partner(col, cols, FORM: tl.constexpr, VECTOR: tl.constexpr):
    """The columns that rotary embedding turns together with these, half of the turned ones away."""
    half = cols // 2 if FORM.whole else FORM.turned // 2  # of a constant float32 spills on sm_100
    other = tl.where(col < half, col + half, col - half)
    return tl.max_contiguous(tl.multiple_of(other, VECTOR), VECTOR)


@triton.jit
def swapped(value):
    """Every column of [rows, cols] changes places with its neighbour."""
    ROWS: tl.constexpr = value.shape[0]
    COLS: tl.constexpr = value.shape[1]
    even, odd = tl.split(tl.reshape(value, [ROWS, COLS // 2, 2]))
    return tl.reshape(tl.join(odd, even), [ROWS, COLS])


@triton.jit
def turned(value, other, cos, sin, col, FORM: tl.constexpr):
    """value cos - other sin in the first column of each pair, value cos + other sin in the second."""
    first = col % 2 == 0 if FORM.interleaved else col < FORM.turned // 2
    result = value * cos + other * tl.where(first, -sin, sin)
    return result if FORM.whole else tl.where(col < FORM.turned, result, value)


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
    FORM: tl.constexpr,
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
    if FORM.centered:
        x, mean = centred(x, mask, cols, TILE)
    rstd = rstd_of(divide(tl.sum(x * x, 1), cols), eps)
    parameters = Parameters(weight_ptr, bias_ptr)
    y = scale_and_shift(x * rstd[:, None], parameters, col, cols)
    if FORM.turned:
        angle = elements(position * FORM.turned, col)
        angle_mask = mask if FORM.whole else mask & (col < FORM.turned)[None, :]
        if FORM.interleaved:
            other = swapped(y)
        else:
            other_col = partner(col, cols, FORM, TILE.vector)
            other = less_mean(load(x_ptr, elements(of_x, other_col), angle_mask, DTYPE), mean)
            other = scale_and_shift(other * rstd[:, None], parameters, other_col, cols)
        cos = load(cos_ptr, angle, angle_mask, DTYPE)
        y = turned(y, other, cos, load(sin_ptr, angle, angle_mask, DTYPE), col, FORM)
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
    FORM: tl.constexpr,
    TILE: tl.constexpr,
):
    """A program a tile: those of queries first, then those of keys."""
    cols = cols * TILE.vector
    q_tiles = tl.cdiv(q_rows, TILE.rows)
    tile = tl.program_id(0)
    if tile < q_tiles:
        normalize(q, tile, q_rows, q_heads, q_stride_token, q_stride_head, positions, cols, eps, FORM, TILE)
    else:
        tile -= q_tiles
        normalize(k, tile, k_rows, k_heads, k_stride_token, k_stride_head, positions, cols, eps, FORM, TILE)


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
    FORM: tl.constexpr,
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
        if FORM.centered:
            mean = load_mean(saved_ptr, row, row_mask)
        rstd = load_spread(saved_ptr, row, row_mask, FORM.centered)
        x_hat = load_x_hat(x_ptr, elements(of_x, col), mask, mean, rstd, DTYPE, TILE.whole, STAGES)
        dy = load(dy_ptr, elements(row * cols, col), mask, DTYPE, STAGES)
        if FORM.turned:
            angle = position * FORM.turned
            angle_mask = mask if FORM.whole else mask & (col < FORM.turned)[None, :]
            other, other_col = dy, col
            if not FORM.interleaved:
                other_col = partner(col, cols, FORM, TILE.vector)
                other = load(dy_ptr, elements(row * cols, other_col), angle_mask, DTYPE, STAGES)
            cos = load(cos_ptr, elements(angle, col), angle_mask, DTYPE, STAGES)
            sin = load(sin_ptr, elements(angle, other_col), angle_mask, DTYPE, STAGES)
            if FORM.interleaved:
                other, sin = swapped(other), swapped(sin)
            dy = turned(dy, other, cos, -sin, col, FORM)

        dweight += dy * x_hat
        dbias += dy
        if dx_ptr is not None:
            statistics = Statistics(saved_ptr, None, None)
            dx = gradient_of_x(dy, weight, x_hat, rstd, cols, statistics, row, row_mask, FORM.centered)
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
    FORM: tl.constexpr,
    TILE: tl.constexpr,
):
    """Tiles of queries, then of keys, which begin at the programs that had one tile less of queries."""
    cols = cols * TILE.vector
    program = tl.program_id(1)
    if q.dy is not None:
        gradients(q, program, q_rows, q_heads, q_stride_token, q_stride_head, positions, cols, FORM, TILE)
    if k.dy is not None:
        first = tl.num_programs(1) - 1 - program
        gradients(k, first, k_rows, k_heads, k_stride_token, k_stride_head, positions, cols, FORM, TILE)
