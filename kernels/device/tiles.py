"""Device helpers on a row that is held in several tiles, side by side.

They take fewer registers than one tile as large, and their widths add up to more than powers of two. Those of
16 bits can stay packed, two elements in a register, and are then unpacked anew for every sweep over the row.
Only the last tile can be short of columns.
"""

import triton
import triton.language as tl

from normreg.kernels.device.rows import store_statistics
from normreg.kernels.device.statistics import Mean, compute_dtype, divide, rounded_mean, rstd_of
from normreg.kernels.device.words import kept_packed, packed, unpacked, widened


@triton.jit
def columns(i: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """The columns of tile i."""
    return tl.arange(0, BLOCK_COLS) + i * BLOCK_COLS


@triton.jit
def within(tile, i: tl.constexpr, cols, TILE: tl.constexpr):
    """Tile i, 0 beyond the row."""
    if i == TILE.tiles - 1 and not TILE.whole:
        tile = tl.where(columns(i, tile.shape[0]) < cols, tile, 0.0)
    return tile


@triton.jit
def load_tile(ptr, i: tl.constexpr, cols, TILE: tl.constexpr):
    """Tile i, 0 beyond the row."""
    col = columns(i, TILE.cols)
    if i == TILE.tiles - 1 and not TILE.whole:
        tile = tl.load(ptr + col, mask=col < cols, other=0.0)
    else:
        tile = tl.load(ptr + col)
    return tile


@triton.jit
def load_widened(ptr, i: tl.constexpr, cols, COMPUTE_DTYPE: tl.constexpr, TILE: tl.constexpr):
    """Tile i in COMPUTE_DTYPE, 0 beyond the row."""
    return widened(load_tile(ptr, i, cols, TILE), COMPUTE_DTYPE)


@triton.jit
def load_tiles(ptr, cols, TILE: tl.constexpr):
    """The tiles of a row, a tuple, packed where TILE says so."""
    TILES: tl.constexpr = TILE.tiles
    tiles = ()
    for i in tl.static_range(TILES):
        tile = load_tile(ptr, i, cols, TILE)
        tiles += (packed(tile) if TILE.packed else tile,)
    return tiles


@triton.jit
def converted(tile, after, cols, DTYPE: tl.constexpr, COMPUTE_DTYPE: tl.constexpr, TILE: tl.constexpr):
    """The tile's elements in COMPUTE_DTYPE, unpacked for this use; DTYPE is what they are packed from."""
    if TILE.packed:
        return unpacked(kept_packed(tile, tl.minimum(cols, 0), after), DTYPE, COMPUTE_DTYPE)
    else:
        return widened(tile, COMPUTE_DTYPE)


@triton.jit
def store_tile(ptr, tile, i: tl.constexpr, cols, TILE: tl.constexpr):
    """Stores tile i, without what is beyond the row."""
    col = columns(i, tile.shape[0])
    tile = tile.to(ptr.dtype.element_ty)
    if i == TILE.tiles - 1 and not TILE.whole:
        tl.store(ptr + col, tile, mask=col < cols)
    else:
        tl.store(ptr + col, tile)


@triton.jit
def deviation(x, after, mean, i: tl.constexpr, cols, DTYPE: tl.constexpr, TILE: tl.constexpr):
    """Tile i minus the mean, 0 beyond the row whatever its statistics are; mean None of rows not centred."""
    tile = converted(x[i], after, cols, DTYPE, compute_dtype(DTYPE), TILE)
    if mean is not None:
        tile = within(tile - mean.high - mean.low, i, cols, TILE)
    return tile


@triton.jit
def mean_of_tiles(x, cols, DTYPE: tl.constexpr, TILE: tl.constexpr):
    """The mean of a row, the tiles x, 0 beyond the row."""
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(DTYPE)
    TILES: tl.constexpr = TILE.tiles
    SHARE: tl.constexpr = 1.0 / triton.next_power_of_2(TILES)
    total = converted(x[0], cols, cols, DTYPE, COMPUTE_DTYPE, TILE) * SHARE
    for i in tl.static_range(1, TILES):
        total += converted(x[i], cols, cols, DTYPE, COMPUTE_DTYPE, TILE) * SHARE
    high = rounded_mean(total, cols * SHARE, 0)
    rest = within(converted(x[0], high, cols, DTYPE, COMPUTE_DTYPE, TILE) - high, 0, cols, TILE)
    for i in tl.static_range(1, TILES):
        rest += within(converted(x[i], high, cols, DTYPE, COMPUTE_DTYPE, TILE) - high, i, cols, TILE)
    return Mean(high, divide(tl.sum(rest), cols))


@triton.jit
def rstd_of_tiles(x, mean, cols, eps, DTYPE: tl.constexpr, TILE: tl.constexpr):
    """rstd of a row, the tiles x, 0 beyond the row; mean None of rows not centred."""
    TILES: tl.constexpr = TILE.tiles
    after = cols
    if mean is not None:
        after = mean.low
    tile = deviation(x, after, mean, 0, cols, DTYPE, TILE)
    squares = tile * tile
    for i in tl.static_range(1, TILES):
        tile = deviation(x, after, mean, i, cols, DTYPE, TILE)
        squares += tile * tile
    return rstd_of(divide(tl.sum(squares), cols), eps)


@triton.jit
def normalized_tile(
    x, mean, rstd, parameters, i: tl.constexpr, cols, DTYPE: tl.constexpr, TILE: tl.constexpr
):
    """x_hat weight + bias of tile i."""
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(DTYPE)
    y = deviation(x, rstd, mean, i, cols, DTYPE, TILE) * rstd
    if parameters.weight is not None:
        y *= load_widened(parameters.weight, i, cols, COMPUTE_DTYPE, TILE)
    if parameters.bias is not None:
        y += load_widened(parameters.bias, i, cols, COMPUTE_DTYPE, TILE)
    return y


@triton.jit
def store_normalized_tiles(
    x,
    results,
    parameters,
    row,
    cols,
    eps,
    DTYPE: tl.constexpr,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
    scale_ptr=None,
    shift_ptr=None,
):
    """Normalises a row, the tiles x, 0 beyond the row, and stores y and the statistics.

    scale_ptr, shift_ptr: modulations of the row, if any.
    """
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(DTYPE)
    TILES: tl.constexpr = TILE.tiles
    mean = None
    if CENTERED:
        mean = mean_of_tiles(x, cols, DTYPE, TILE)
    rstd = rstd_of_tiles(x, mean, cols, eps, DTYPE, TILE)
    store_statistics(results.statistics, mean, rstd, row, True)

    for i in tl.static_range(TILES):
        y = normalized_tile(x, mean, rstd, parameters, i, cols, DTYPE, TILE)
        if scale_ptr is not None:
            y *= 1.0 + load_widened(scale_ptr, i, cols, COMPUTE_DTYPE, TILE)
        if shift_ptr is not None:
            y += load_widened(shift_ptr, i, cols, COMPUTE_DTYPE, TILE)
        store_tile(results.y + row * cols, y, i, cols, TILE)
