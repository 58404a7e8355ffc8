"""Device helpers on rows: where they lie, and what a normalisation loads, adds up and stores.

A tensor is [samples, rows, cols], and what is normalised are the cols of a row. The rows of LayerNorm lie one
after another, as those of one sample. Where CHANNELS_FIRST the memory is [samples, cols, rows]: the cols are
channels, the rows are a sample's positions, and a tile of rows is some of one sample's.

Statistics are [samples, rows, 3], high and low part of each row's mean and its spread, which is rstd (var in
GroupNorm), or rstd alone, [samples, rows, 1], of rows that are not centred.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from normreg.kernels.device.statistics import Mean, divide, rounded_mean, rstd_of, two_sums
from normreg.kernels.device.words import widened


class Parameters(NamedTuple):
    """[cols] each, or None."""

    weight: tl.tensor
    bias: tl.tensor


class Results(NamedTuple):
    """What a forward stores: y, and `statistics` of each row, or None."""

    y: tl.tensor
    statistics: tl.tensor


class Statistics(NamedTuple):
    """What the backward knows of each row.

    c1 and c2 are None where a program finds them itself; c2 is None where rows are not centred.
    """

    saved: tl.tensor
    c1: tl.tensor
    c2: tl.tensor


@triton.jit
def row_strides(rows, cols, VECTOR: tl.constexpr, CHANNELS_FIRST: tl.constexpr):
    """Rows and cols, of which the contiguous ones came in vectors, and the strides of both, in elements."""
    if CHANNELS_FIRST:
        rows = rows * VECTOR
        return rows, cols, 1, rows.to(tl.int64)
    else:
        cols = cols * VECTOR
        return rows, cols, cols, 1


@triton.jit
def row_tile(tile, rows, cols, stride_row, CHANNELS_FIRST: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """A tile's first row among those of all samples, the rows left in its sample, its offset."""
    if CHANNELS_FIRST:
        tiles = tl.cdiv(rows, BLOCK_ROWS)
        sample = (tile // tiles).to(tl.int64)
        row = (tile % tiles) * BLOCK_ROWS
        return sample * rows + row, rows - row, sample * rows * cols + row
    else:
        row = tl.full([], BLOCK_ROWS, tl.int64) * tile
        return row, rows - row, row * stride_row


@triton.jit
def rows_apart(stride, first_row, row, col, base, offsets, VECTOR: tl.constexpr):
    """base and offsets of a tile of rows that are `stride` vectors apart, or those given where it is None."""
    if stride is None:
        return base, offsets
    else:
        stride = stride.to(tl.int64) * VECTOR
        return first_row * stride, row[:, None] * stride + col[None, :]


@triton.jit
def row_apart(stride, row, base, VECTOR: tl.constexpr):
    """The offset of a row of those that are `stride` vectors apart, or the one given where it is None."""
    if stride is None:
        return base
    else:
        return row.to(tl.int64) * stride * VECTOR


@triton.jit
def elements_of_rows(row_block, col_block, rows, cols, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """row, int64, first col, col, and base, offsets and mask of a tile of some of the cols of some rows."""
    first_row = tl.full([], BLOCK_ROWS, tl.int64) * row_block
    first_col = tl.full([], BLOCK_COLS, tl.int64) * col_block
    row = tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_COLS)
    offsets = row[:, None] * cols + col[None, :]
    row = first_row + row
    mask = (row < rows)[:, None] & (first_col + col < cols)[None, :]
    return row, first_col, first_col + col, first_row * cols + first_col, offsets, mask


@triton.jit
def load(ptr, offsets, mask, DTYPE: tl.constexpr, STAGES: tl.constexpr = 1):
    """The elements, 0 where masked; STAGES of the loop around it."""
    x = tl.load(ptr + offsets, mask=mask, other=0.0)
    return widened(x, DTYPE) if STAGES == 1 else x.to(DTYPE)


@triton.jit
def store(ptr, offsets, value, mask):
    """Stores the value in the tensor's dtype, or nothing where the tensor is absent."""
    if ptr is not None:
        tl.store(ptr + offsets, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_parameter(ptr, col, cols, COMPUTE_DTYPE: tl.constexpr):
    """[1, cols] of a parameter."""
    return load(ptr, col, col < cols, COMPUTE_DTYPE)[None, :]


@triton.jit
def scale_and_shift(x_hat, parameters, col, cols):
    """x_hat weight + bias, each where it is there."""
    if parameters.weight is not None:
        x_hat *= load_parameter(parameters.weight, col, cols, x_hat.dtype)
    if parameters.bias is not None:
        x_hat += load_parameter(parameters.bias, col, cols, x_hat.dtype)
    return x_hat


@triton.jit
def within(x, mask, WHOLE: tl.constexpr):
    """x, 0 where masked; where rows are WHOLE it is 0 there already, because all of a masked row is 0."""
    return x if WHOLE else tl.where(mask, x, 0.0)


@triton.jit
def centred(x, mask, cols, TILE: tl.constexpr):
    """x [rows, cols], 0 where masked, less the mean of each row, and that mean."""
    high = rounded_mean(x, cols, 1)
    x = within(x - high[:, None], mask, TILE.whole)
    low = divide(tl.sum(x, 1), cols)
    return within(x - low[:, None], mask, TILE.whole), Mean(high, low)


@triton.jit
def normalized(x, statistics_ptr, mask, row, row_mask, cols, eps, CENTERED: tl.constexpr, TILE: tl.constexpr):
    """x_hat of x [rows, cols], both 0 where masked; stores the statistics."""
    mean = None
    if CENTERED:
        x, mean = centred(x, mask, cols, TILE)
    rstd = rstd_of(divide(tl.sum(x * x, 1), cols), eps)
    store_statistics(statistics_ptr, mean, rstd, row, row_mask)
    return x * rstd[:, None]


@triton.jit
def store_normalized(
    x,
    results,
    parameters,
    base,
    offsets,
    mask,
    row,
    row_mask,
    col,
    cols,
    eps,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Normalises x [rows, cols], 0 where masked, and stores y and the statistics."""
    x_hat = normalized(x, results.statistics, mask, row, row_mask, cols, eps, CENTERED, TILE)
    store(results.y + base, offsets, scale_and_shift(x_hat, parameters, col, cols), mask)


@triton.jit
def store_statistics(statistics_ptr, mean, spread, row, row_mask):
    """Stores the statistics of rows, where they are wanted; mean is None where rows are not centred."""
    if statistics_ptr is not None:
        if mean is None:
            tl.store(statistics_ptr + row, spread, mask=row_mask)
        else:
            tl.store(statistics_ptr + row * 3, mean.high, mask=row_mask)
            tl.store(statistics_ptr + row * 3 + 1, mean.low, mask=row_mask)
            tl.store(statistics_ptr + row * 3 + 2, spread, mask=row_mask)


@triton.jit
def load_mean(statistics_ptr, row, row_mask):
    """The mean of rows that are centred."""
    high = tl.load(statistics_ptr + row * 3, mask=row_mask, other=0.0)
    return Mean(high, tl.load(statistics_ptr + row * 3 + 1, mask=row_mask, other=0.0))


@triton.jit
def load_spread(statistics_ptr, row, row_mask, CENTERED: tl.constexpr = True):
    """The spread of rows."""
    if CENTERED:
        row = row * 3 + 2
    return tl.load(statistics_ptr + row, mask=row_mask, other=0.0)


@triton.jit
def less_mean(x, mean):
    """x [rows, cols] minus the mean of each row, if any."""
    if mean is not None:
        x = x - mean.high[:, None] - mean.low[:, None]
    return x


@triton.jit
def load_x_hat(
    x_ptr,
    offsets,
    mask,
    mean,
    rstd,
    COMPUTE_DTYPE: tl.constexpr,
    WHOLE: tl.constexpr = False,
    STAGES: tl.constexpr = 1,
):
    """x_hat [rows, cols], 0 where masked, whatever the statistics are there."""
    x = less_mean(load(x_ptr, offsets, mask, COMPUTE_DTYPE, STAGES), mean)
    return within(x * rstd[:, None], mask, WHOLE)


@triton.jit
def gradient_of_x(dy, weight, x_hat, rstd, cols, statistics, row, row_mask, CENTERED: tl.constexpr):
    """dx = (wdy - x_hat c1 - c2) rstd; weight [1, cols] or None.

    c1 and c2 are loaded or, where the tile has whole rows, added up.
    """
    wdy = dy
    if weight is not None:
        wdy = dy * weight
    rstd = rstd[:, None]
    minus_rstd = -rstd
    centred = wdy
    if statistics.c1 is not None:
        c1 = tl.load(statistics.c1 + row, mask=row_mask, other=0.0)
        if CENTERED:
            centred -= tl.load(statistics.c2 + row, mask=row_mask, other=0.0)[:, None]
    else:
        minus_rstd *= divide(tl.full([], 1.0, rstd.dtype), cols)
        if CENTERED:
            c1, c2 = two_sums(x_hat * wdy, wdy, 1)
            centred -= divide(c2, cols)[:, None]  # exactly 0 where all wdy are equal
        else:
            c1 = tl.sum(x_hat * wdy, 1)
    return centred * rstd + x_hat * (c1[:, None] * minus_rstd)


@triton.jit
def store_partial(ptr, sums, col, cols, group=0, groups=1):
    """This program's sums over its rows of a group, [rows, cols], into its row of [programs, groups, cols],
    where wanted."""
    if ptr is not None:
        partial = (tl.program_id(1).to(tl.int64) * groups + group) * cols + col
        tl.store(ptr + partial, tl.sum(sums, 0), mask=col < cols)
