"""LayerNorm's backward of rows too wide to be held beside their column sums, by the formulas of `layer_norm`.

A program holds the column sums of its columns and takes rows in turn, each read twice: c1 and c2 of the whole
row first, then its own columns, which the caches still have. Of a row that two programs share, each adds up
all of it, at about the same time, so that memory is read once.
"""

import triton
import triton.language as tl

from normreg.kernels.device.rows import Parameters, Statistics, load_mean, load_spread
from normreg.kernels.device.statistics import compute_dtype, divide, two_sums
from normreg.kernels.device.words import widened


@triton.jit
def columns(TILE: tl.constexpr):
    """The columns [cols / 8, 8] of the first tile, so that a thread has 8 of them."""
    return tl.arange(0, TILE.cols // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]


@triton.jit
def load(ptr, col, end, WHOLE: tl.constexpr):
    """Elements of a row, 0 where they are not before its end."""
    if WHOLE:
        return tl.load(ptr + col)
    else:
        return tl.load(ptr + col, mask=col < end, other=0.0)


@triton.jit
def store(ptr, col, end, x, WHOLE: tl.constexpr):
    """Stores elements of a row before its end, or nothing where the tensor is absent."""
    if ptr is not None:
        if WHOLE:
            tl.store(ptr + col, x.to(ptr.dtype.element_ty))
        else:
            tl.store(ptr + col, x.to(ptr.dtype.element_ty), mask=col < end)


@triton.jit
def normalized(x, mean, rstd):
    """x_hat; mean is None where rows are not centred."""
    x = widened(x, rstd.dtype)
    if mean is None:
        return x * rstd
    else:
        return (x - mean.high) * rstd - mean.low * rstd


@triton.jit
def c1_and_c2(dy_ptr, x_ptr, weight_ptr, mean, rstd, cols, WHOLE: tl.constexpr, TILE: tl.constexpr):
    """c1 and c2 of a row, a few tiles of which are loaded at once; c2 is 0 where it is not centred."""
    BLOCK_COLS: tl.constexpr = TILE.cols
    TILES_AT_ONCE: tl.constexpr = TILE.stages
    x_wdy = tl.zeros([BLOCK_COLS // 8, 8], rstd.dtype)
    wdys = tl.zeros([BLOCK_COLS // 8, 8], rstd.dtype)
    for start in range(0, cols, BLOCK_COLS * TILES_AT_ONCE):
        x = ()
        dy = ()
        for i in tl.static_range(TILES_AT_ONCE):
            col = start + i * BLOCK_COLS + columns(TILE)
            x += (load(x_ptr, col, cols, WHOLE),)
            dy += (load(dy_ptr, col, cols, WHOLE),)
        for i in tl.static_range(TILES_AT_ONCE):
            wdy = widened(dy[i], rstd.dtype)
            if weight_ptr is not None:
                col = start + i * BLOCK_COLS + columns(TILE)
                wdy *= widened(load(weight_ptr, col, cols, WHOLE), rstd.dtype)
            x_i = widened(x[i], rstd.dtype)
            if mean is not None:
                x_i -= mean.high
            x_wdy += x_i * wdy
            wdys += wdy
    x_wdy = tl.sum(x_wdy, 1)
    if mean is None:
        c1 = tl.sum(x_wdy)
        c2 = tl.zeros_like(c1)
    else:
        c1, c2 = two_sums(x_wdy, tl.sum(wdys, 1), 0)
        c1 -= mean.low * c2
    return divide(c1 * rstd, cols), divide(c2, cols)


@triton.jit(do_not_specialize=["rows", "cols"])
def layer_norm_backward_wide_kernel(
    dy_ptr,  # [rows, cols]; so is x
    x_ptr,
    dx_ptr,  # [rows, cols] or None
    weight_ptr,  # [cols] or None
    statistics: Statistics,  # c1 and c2 None
    partials: Parameters,  # [programs, cols] or None
    rows,
    cols,  # in vectors
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Every row in turn."""
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty, dy_ptr.dtype.element_ty)
    BLOCK_COLS: tl.constexpr = TILE.cols
    TILES: tl.constexpr = TILE.tiles
    WHOLE: tl.constexpr = TILE.whole
    share = tl.cdiv(cols, tl.num_programs(0)) * TILE.vector
    cols *= TILE.vector
    end = tl.minimum(tl.program_id(0) * share + share, cols)
    first_col = tl.program_id(0) * share + columns(TILE)
    dweight = ()
    dbias = ()
    for _ in tl.static_range(TILES):
        dweight += (tl.zeros([BLOCK_COLS // 8, 8], COMPUTE_DTYPE),)
        dbias += (tl.zeros([BLOCK_COLS // 8, 8], COMPUTE_DTYPE),)

    for row in range(tl.program_id(1), rows, tl.num_programs(1)):
        base = cols.to(tl.int64) * row
        mean = None
        if CENTERED:
            mean = load_mean(statistics.saved, row, True)
        rstd = load_spread(statistics.saved, row, True, CENTERED)
        c1_rstd = tl.zeros_like(rstd)
        c2_rstd = tl.zeros_like(rstd)
        if dx_ptr is not None:
            CHUNKS_WHOLE: tl.constexpr = WHOLE and TILES % TILE.stages == 0
            c1, c2 = c1_and_c2(dy_ptr + base, x_ptr + base, weight_ptr, mean, rstd, cols, CHUNKS_WHOLE, TILE)
            c1_rstd = c1 * rstd
            c2_rstd = c2 * rstd

        next_dweight = ()
        next_dbias = ()
        for i in tl.static_range(TILES):
            col = first_col + i * BLOCK_COLS
            x_hat = normalized(load(x_ptr + base, col, end, WHOLE or i < TILES - 1), mean, rstd)
            wdy = widened(load(dy_ptr + base, col, end, WHOLE or i < TILES - 1), COMPUTE_DTYPE)
            next_dweight += (dweight[i] + wdy * x_hat,)
            next_dbias += (dbias[i] + wdy,)
            if weight_ptr is not None:
                wdy *= widened(load(weight_ptr, col, end, WHOLE or i < TILES - 1), COMPUTE_DTYPE)
            dx = wdy * rstd + (x_hat * -c1_rstd - c2_rstd)
            store(dx_ptr, base + col, base + end, dx, WHOLE or i < TILES - 1)
        dweight = next_dweight
        dbias = next_dbias

    partial = tl.program_id(1).to(tl.int64) * cols
    for i in tl.static_range(TILES):
        col = first_col + i * BLOCK_COLS
        store(partials.weight, partial + col, partial + end, dweight[i], WHOLE or i < TILES - 1)
        store(partials.bias, partial + col, partial + end, dbias[i], WHOLE or i < TILES - 1)
