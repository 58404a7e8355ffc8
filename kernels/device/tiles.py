"""Device helpers on a row that is held in several tiles, side by side.

They take fewer registers than one tile as large, and their widths add up to more than powers of two. Those of
16 bits can stay packed, two elements in a register, and are then unpacked anew for every sweep over the row.
Only the last tile can be short of columns.
"""

import triton
import triton.language as tl

from normreg.kernels.device.statistics import compute_dtype, rstd_of


@triton.jit
def packed(x):
    """Elements of 16 bits, two in a word."""
    low, high = tl.split(x.to(tl.int16, bitcast=True).reshape(x.shape[0] // 2, 2))
    return (low.to(tl.int32) & 0xFFFF) | (high.to(tl.int32) << 16)


@triton.jit
def unpacked(words, after, cols, DTYPE: tl.constexpr):
    """The elements, which the compiler can unpack neither before it has `after` nor once for all sweeps."""
    words ^= tl.minimum(cols, 0) & after.to(tl.int32, bitcast=True)  # always 0; the compiler cannot prove it
    x = tl.join(words.to(tl.int16), (words >> 16).to(tl.int16))
    return x.reshape(words.shape[0] * 2).to(DTYPE, bitcast=True)


@triton.jit
def columns(i: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """The columns of tile i."""
    return tl.arange(0, BLOCK_COLS) + i * BLOCK_COLS


@triton.jit
def within(tile, i: tl.constexpr, cols, TILE: tl.constexpr):
    """Tile i, 0 beyond the row."""
    if i == TILE.tiles - 1:
        tile = tl.where(columns(i, tile.shape[0]) < cols, tile, 0.0)
    return tile


@triton.jit
def load_tile(ptr, i: tl.constexpr, cols, TILE: tl.constexpr):
    """Tile i, 0 beyond the row."""
    col = columns(i, TILE.cols)
    if i == TILE.tiles - 1:
        tile = tl.load(ptr + col, mask=col < cols, other=0.0)
    else:
        tile = tl.load(ptr + col)
    return tile


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
    """The tile's elements in COMPUTE_DTYPE; DTYPE is what they are packed from."""
    if TILE.packed:
        tile = unpacked(tile, after, cols, DTYPE)
    return tile.to(COMPUTE_DTYPE)


@triton.jit
def store_tile(ptr, tile, i: tl.constexpr, cols, TILE: tl.constexpr):
    """Stores tile i, without what is beyond the row."""
    col = columns(i, tile.shape[0])
    tile = tile.to(ptr.dtype.element_ty)
    if i == TILE.tiles - 1:
        tl.store(ptr + col, tile, mask=col < cols)
    else:
        tl.store(ptr + col, tile)


@triton.jit
def deviation(x, after, shift, mean, i: tl.constexpr, cols, DTYPE: tl.constexpr, TILE: tl.constexpr):
    """Tile i minus the mean, 0 beyond the row whatever its statistics are; mean None of rows not centred."""
    tile = converted(x[i], after, cols, DTYPE, compute_dtype(DTYPE), TILE)
    if mean is not None:
        tile = within(tile - shift - mean, i, cols, TILE)
    return tile


@triton.jit
def store_normalized_tiles(
    x,
    shift,
    results,
    parameters,
    row,
    cols,
    eps,
    DTYPE: tl.constexpr,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Normalises a row, the tiles x, and stores y, mean and rstd; the mean is relative to shift, if any."""
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(DTYPE)
    BLOCK_COLS: tl.constexpr = TILE.cols
    TILES: tl.constexpr = TILE.tiles
    mean = None
    after = cols
    if CENTERED:
        total = tl.zeros([BLOCK_COLS], COMPUTE_DTYPE)
        for i in tl.static_range(TILES):
            tile = converted(x[i], after, cols, DTYPE, COMPUTE_DTYPE, TILE) - shift
            total += within(tile, i, cols, TILE)
        mean = tl.sum(total) / cols
        after = mean
    squares = tl.zeros([BLOCK_COLS], COMPUTE_DTYPE)
    for i in tl.static_range(TILES):
        tile = deviation(x, after, shift, mean, i, cols, DTYPE, TILE)
        squares += tile * tile
    rstd = rstd_of(tl.sum(squares) / cols, eps)
    if results.mean is not None:
        tl.store(results.mean + row, mean)
    if results.rstd is not None:
        tl.store(results.rstd + row, rstd)

    for i in tl.static_range(TILES):
        y = deviation(x, rstd, shift, mean, i, cols, DTYPE, TILE) * rstd
        if parameters.weight is not None:
            y *= load_tile(parameters.weight, i, cols, TILE).to(COMPUTE_DTYPE)
        if parameters.bias is not None:
            y += load_tile(parameters.bias, i, cols, TILE).to(COMPUTE_DTYPE)
        store_tile(results.y + row * cols, y, i, cols, TILE)
