"""Device helpers on rows: where they lie, and what the backward of a normalisation loads and adds up.

A tensor is [samples, rows, cols], and what is normalised are the cols of a row. The rows of LayerNorm lie one
after another, as those of one sample. Where CHANNELS_FIRST the memory is [samples, cols, rows]: the cols are
channels, the rows are a sample's positions, and a tile of rows is some of one sample's.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from normreg.kernels import tiling


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
def load_parameter(ptr, col, cols, COMPUTE_DTYPE: tl.constexpr):
    """[1, cols] of a parameter."""
    return tl.load(ptr + col, mask=col < cols, other=0.0).to(COMPUTE_DTYPE)[None, :]


@triton.jit
def load_x_hat(x_ptr, offsets, mask, shift, mean, rstd, COMPUTE_DTYPE: tl.constexpr):
    """x_hat of the unmasked elements, 0 elsewhere, whatever the statistics are there."""
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    if mean is not None:
        x = x - shift - mean
    return tl.where(mask, x * rstd, 0.0)


@triton.jit
def load_normalized(
    x_ptr, mean_ptr, rstd_ptr, base, offsets, mask, first_row, row, row_mask, stride_row,
    COMPUTE_DTYPE: tl.constexpr,
):  # fmt: skip
    """x_hat of a tile of rows, and their rstd [rows, 1]; mean_ptr None where rows are not centred."""
    rstd = tl.load(rstd_ptr + first_row + row, mask=row_mask, other=0.0)[:, None]
    mean = None
    shift = None
    if mean_ptr is not None:
        mean = tl.load(mean_ptr + first_row + row, mask=row_mask, other=0.0)[:, None]
        shift = tl.load(x_ptr + base + row * stride_row, mask=row_mask, other=0.0)
        shift = shift.to(COMPUTE_DTYPE)[:, None]
    return load_x_hat(x_ptr, offsets, mask, shift, mean, rstd, COMPUTE_DTYPE), rstd


@triton.jit
def load_wdy(dy_ptr, weight_ptr, offsets, mask, col, cols, COMPUTE_DTYPE: tl.constexpr):
    """weight dy of the unmasked elements, 0 elsewhere."""
    wdy = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    if weight_ptr is not None:
        wdy *= load_parameter(weight_ptr, col, cols, COMPUTE_DTYPE)
    return wdy


@triton.jit
def row_sums(x_hat, wdy, cols, c1_ptr, c2_ptr, row, row_mask, mean_ptr):
    """c1 and c2 [rows, 1]: loaded, or those of the whole rows that are held; c2 is 0 of rows not centred."""
    if c1_ptr is not None:
        c1 = tl.load(c1_ptr + row, mask=row_mask, other=0.0)
        c2 = tl.zeros_like(c1)
        if c2_ptr is not None:
            c2 = tl.load(c2_ptr + row, mask=row_mask, other=0.0)
    else:
        c1 = tl.sum(x_hat * wdy, 1) / cols
        c2 = tl.zeros_like(c1)
        if mean_ptr is not None:
            c2 = tl.sum(wdy, 1) / cols
    return c1[:, None], c2[:, None]


@triton.jit
def column_sums(partial_ptr, partials, cols, col, BLOCK_ROWS: tl.constexpr):
    """Sum over the rows of [partials, cols], in the same order every time."""
    col_mask = col < cols
    total = tl.zeros([BLOCK_ROWS, col.shape[0]], partial_ptr.dtype.element_ty)
    for start in range(0, partials, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        mask = (row < partials)[:, None] & col_mask[None, :]
        total += tl.load(partial_ptr + row[:, None] * cols + col[None, :], mask=mask, other=0.0)
    return tl.sum(total, 0)


class Rows(NamedTuple):
    """How x is seen as [samples, rows, cols]."""

    samples: int
    rows: int
    cols: int
    channels_first: bool

    def sizes(self):
        """rows and cols as the kernels take them, and the constants that go with them."""
        vector = tiling.hardware.vector(self.rows if self.channels_first else self.cols)
        constants = dict(VECTOR=vector, CHANNELS_FIRST=self.channels_first)
        if self.channels_first:
            return (self.rows // vector, self.cols), constants
        return (self.rows, self.cols // vector), constants

    @property
    def count(self):
        return self.samples * self.rows

    def tiles(self, tile):
        return self.samples * triton.cdiv(self.rows, tile.rows)


def rows_of(x, cols, channels_first):
    if channels_first:
        return Rows(x.shape[0], x.shape[2:].numel(), cols, True)
    return Rows(1, x.numel() // cols, cols, False)
