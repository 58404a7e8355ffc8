"""LayerNorm of rows that are held in several tiles, whose formulas are in `layer_norm`: a row a program."""

import triton
import triton.language as tl

from normreg.kernels.device.rows import Parameters, Results, Statistics, load_mean, load_spread, row_apart
from normreg.kernels.device.statistics import compute_dtype
from normreg.kernels.device.tiles import (
    converted,
    load_tiles,
    load_widened,
    store_normalized_tiles,
    store_tile,
    within,
)


@triton.jit(do_not_specialize=["rows", "cols", "stride"])
def layer_norm_forward_tiles_kernel(
    x_ptr,  # [rows, cols]
    results: Results,  # y like x
    parameters: Parameters,
    rows,
    cols,  # in vectors
    stride,  # from a row of x to the next, in vectors; None where they lie like y's
    eps: tl.float64,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    cols *= TILE.vector
    row = tl.program_id(0).to(tl.int64)
    x = load_tiles(x_ptr + row_apart(stride, row, row * cols, TILE.vector), cols, TILE)
    store_normalized_tiles(x, results, parameters, row, cols, eps, DTYPE, CENTERED, TILE)


@triton.jit
def normalized(tile, after, mean, rstd, i: tl.constexpr, cols, DTYPE: tl.constexpr, TILE: tl.constexpr):
    """x_hat of tile i, 0 beyond the row whatever its statistics are; mean None of rows not centred."""
    tile = converted(tile, after, cols, DTYPE, compute_dtype(DTYPE), TILE)
    if mean is None:
        return tile * rstd
    else:
        return within((tile - mean.high) * rstd + mean.low * -rstd, i, cols, TILE)


@triton.jit(do_not_specialize=["rows", "cols"])
def layer_norm_backward_tiles_kernel(
    dy_ptr,  # [rows, cols] of 16 bits; so is x
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
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    DY_DTYPE: tl.constexpr = dy_ptr.dtype.element_ty
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(DTYPE)
    BLOCK_COLS: tl.constexpr = TILE.cols
    TILES: tl.constexpr = TILE.tiles
    VECTOR: tl.constexpr = TILE.vector
    THREADS: tl.constexpr = BLOCK_COLS // VECTOR
    cols *= VECTOR
    dweight = ()
    dbias = ()
    for _ in tl.static_range(TILES):
        dweight += (tl.zeros([BLOCK_COLS], COMPUTE_DTYPE),)
        dbias += (tl.zeros([BLOCK_COLS], COMPUTE_DTYPE),)

    if CENTERED:  # 20480 columns of rows that are not would spill
        tl.assume(tl.program_id(1) < rows)
    for row in range(tl.program_id(1), rows, tl.num_programs(1)):
        base = cols.to(tl.int64) * row
        x = load_tiles(x_ptr + base, cols, TILE)
        dy = load_tiles(dy_ptr + base, cols, TILE)
        mean = None
        if CENTERED:
            mean = load_mean(statistics.saved, row, True)
        rstd = load_spread(statistics.saved, row, True, CENTERED)
        if weight_ptr is not None:
            row_weight_ptr = weight_ptr + tl.minimum(row, 0) * 16  # itself, but not held beyond the row

        after = rstd
        if dx_ptr is not None:
            # a thread adds up its own elements first: sums for every column would take its last registers
            x_hat_wdy = tl.zeros([THREADS], COMPUTE_DTYPE)
            wdys = tl.zeros([THREADS], COMPUTE_DTYPE)
            for i in tl.static_range(TILES):
                x_hat = normalized(x[i], after, mean, rstd, i, cols, DTYPE, TILE)
                wdy = converted(dy[i], after, cols, DY_DTYPE, COMPUTE_DTYPE, TILE)
                if weight_ptr is not None:
                    wdy *= load_widened(row_weight_ptr, i, cols, COMPUTE_DTYPE, TILE)
                x_hat_wdy += tl.sum(tl.reshape(x_hat * wdy, [THREADS, VECTOR]), 1)
                wdys += tl.sum(tl.reshape(wdy, [THREADS, VECTOR]), 1)
            minus_rstd = -rstd / cols  # `divide` would spill
            minus_c1_rstd = tl.sum(x_hat_wdy) * minus_rstd
            minus_c2_rstd = 0.0
            if CENTERED:
                minus_c2_rstd = tl.sum(wdys) * minus_rstd
            after = minus_c1_rstd

        next_dweight = ()
        next_dbias = ()
        for i in tl.static_range(TILES):
            x_hat = normalized(x[i], after, mean, rstd, i, cols, DTYPE, TILE)
            wdy = converted(dy[i], after, cols, DY_DTYPE, COMPUTE_DTYPE, TILE)
            next_dweight += (dweight[i] + wdy * x_hat,)
            next_dbias += (dbias[i] + wdy,)
            if dx_ptr is not None:
                if weight_ptr is not None:
                    wdy *= load_widened(row_weight_ptr, i, cols, COMPUTE_DTYPE, TILE)
                dx = wdy * rstd + (x_hat * minus_c1_rstd + minus_c2_rstd)
                store_tile(dx_ptr + base, dx, i, cols, TILE)
        dweight = next_dweight
        dbias = next_dbias

    partial = tl.program_id(1).to(tl.int64) * cols
    for i in tl.static_range(TILES):
        if partials.weight is not None:
            store_tile(partials.weight + partial, dweight[i], i, cols, TILE)
        if partials.bias is not None:
            store_tile(partials.bias + partial, dbias[i], i, cols, TILE)
