"""LayerNorm's backward of rows whose x_hat and wdy are held in float32, by the formulas of `layer_norm`.

A program takes a few rows at a time, each over some of its warps and in several tiles, and a multiprocessor
runs one program, so that there is one row of partial sums a multiprocessor. A tile is [rows, cols / 8, 8]: a
thread has 8 elements of one row, and adds up those of all tiles before it exchanges sums with others.
"""

import triton
import triton.language as tl

from normreg.kernels.device.rows import Parameters, Statistics, load_mean, load_spread
from normreg.kernels.device.statistics import compute_dtype, divide, two_sums


@triton.jit
def columns(TILE: tl.constexpr):
    """The columns [cols / 8, 8] of the first tile."""
    return tl.arange(0, TILE.cols // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]


@triton.jit
def masked(row_mask, i: tl.constexpr, col, cols, WHOLE: tl.constexpr, TILE: tl.constexpr):
    """The mask of tile i, of which only the last can be short of columns."""
    if i == TILE.tiles - 1 and not WHOLE:
        row_mask = row_mask & (col + i * TILE.cols < cols)
    return row_mask


@triton.jit
def load_weight(ptr, i: tl.constexpr, col, cols, WHOLE: tl.constexpr, TILE: tl.constexpr):
    """Tile i of the weight, and where it leaves more registers, two elements of 16 bits packed in a word."""
    ROWS: tl.constexpr = TILE.rows
    VECTORS: tl.constexpr = TILE.cols // 8
    col = tl.broadcast_to(col + i * TILE.cols, (ROWS, VECTORS, 8))  # so a thread loads 8, as of x
    if i == TILE.tiles - 1 and not WHOLE:
        weight = tl.load(ptr + col, mask=col < cols, other=0.0)
    else:
        weight = tl.load(ptr + col)
    if TILE.packed and weight.dtype.primitive_bitwidth == 16:
        bits = weight.to(tl.int16, bitcast=True)
        low, high = tl.split(tl.reshape(bits, (ROWS, VECTORS, 4, 2)))
        weight = (low.to(tl.int32) & 0xFFFF) | (high.to(tl.int32) << 16)
    return weight


@triton.jit
def unpacked_weight(weight, step, DTYPE: tl.constexpr):
    """A tile of the weight that `load_weight` has packed; step, at least 0, keeps it so between steps."""
    if weight.dtype == tl.int32:
        weight ^= tl.minimum(step, 0).to(tl.int32)
        bits = tl.join(weight.to(tl.int16), (weight >> 16).to(tl.int16))
        weight = tl.reshape(bits, (weight.shape[0], weight.shape[1], 8)).to(DTYPE, bitcast=True)
    return weight


@triton.jit
def sum_over_rows(sums):
    """[cols / 8, 8] of [rows, cols / 8, 8], in pairs: a fifth of the instructions of `tl.sum` over warps."""
    sums = tl.permute(sums, (1, 2, 0))
    for _ in tl.static_range(10):
        if sums.shape[2] > 1:
            even, odd = tl.split(tl.reshape(sums, (sums.shape[0], sums.shape[1], sums.shape[2] // 2, 2)))
            sums = even + odd
    return tl.reshape(sums, (sums.shape[0], sums.shape[1]))


@triton.jit
def store_sums(ptr, sums, cols, TILE: tl.constexpr):
    """This program's sums over its rows into its row of [programs, cols], where wanted."""
    if ptr is not None:
        ptr += tl.program_id(1).to(tl.int64) * cols
        col = columns(TILE)
        TILES: tl.constexpr = TILE.tiles
        for i in tl.static_range(TILES):
            tl.store(ptr + col + i * TILE.cols, sum_over_rows(sums[i]), mask=col + i * TILE.cols < cols)


@triton.jit(do_not_specialize=["rows", "cols", "rows_at_once"])
def layer_norm_backward_held_kernel(
    dy_ptr,  # [rows, cols] of 16 bits; so is x
    x_ptr,
    dx_ptr,  # [rows, cols] or None
    weight_ptr,  # [cols] or None
    statistics: Statistics,  # c1 and c2 None
    partials: Parameters,  # [programs, cols] or None
    rows,
    cols,  # in vectors
    rows_at_once,  # TILE's or fewer
    CENTERED: tl.constexpr,
    WHOLE: tl.constexpr,  # whether the tiles have no more columns than the row
    TILE: tl.constexpr,
):
    """Every few rows in turn."""
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty)
    ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    TILES: tl.constexpr = TILE.tiles
    STAGES: tl.constexpr = TILE.stages
    SHAPE: tl.constexpr = (ROWS, BLOCK_COLS // 8, 8)
    cols *= 8
    row = tl.arange(0, ROWS)
    col = columns(TILE)[None, :, :]
    offsets = row[:, None, None] * cols + col
    dweight = ()
    dbias = ()
    weight = ()
    for i in tl.static_range(TILES):
        dweight += (tl.zeros(SHAPE, COMPUTE_DTYPE),)
        dbias += (tl.zeros(SHAPE, COMPUTE_DTYPE),)
        if weight_ptr is not None:
            weight += (load_weight(weight_ptr, i, col, cols, WHOLE, TILE),)

    stride = tl.num_programs(1) * rows_at_once
    for first_row in tl.range(tl.program_id(1) * rows_at_once, rows, stride, num_stages=STAGES):
        first_row = tl.full([], 1, tl.int64) * first_row
        row_mask = row < tl.minimum(rows - first_row, rows_at_once)
        base = first_row * cols
        mean = None
        if CENTERED:
            mean = load_mean(statistics.saved, first_row + row, row_mask)
        rstd = load_spread(statistics.saved, first_row + row, row_mask, CENTERED)
        rstd = rstd[:, None, None]
        row_mask = row_mask[:, None, None]
        x = ()
        dy = ()
        for i in tl.static_range(TILES):
            mask = masked(row_mask, i, col, cols, WHOLE, TILE)
            place = base + offsets + i * BLOCK_COLS
            x += (tl.load(x_ptr + place, mask=mask, other=0.0, eviction_policy="evict_first"),)
            dy += (tl.load(dy_ptr + place, mask=mask, other=0.0, eviction_policy="evict_first"),)

        x_hat = ()
        wdy = ()
        next_dweight = ()
        next_dbias = ()
        x_hat_wdy = tl.zeros((ROWS, BLOCK_COLS // 8), COMPUTE_DTYPE)
        wdys = tl.zeros((ROWS, BLOCK_COLS // 8), COMPUTE_DTYPE)
        for i in tl.static_range(TILES):
            x_hat_i = x[i].to(COMPUTE_DTYPE)
            if CENTERED:
                x_hat_i = (x_hat_i - mean.high[:, None, None]) * rstd - mean.low[:, None, None] * rstd
                if i == TILES - 1 and not WHOLE:
                    x_hat_i = tl.where(col + i * BLOCK_COLS < cols, x_hat_i, 0.0)
            else:
                x_hat_i *= rstd
            wdy_i = dy[i].to(COMPUTE_DTYPE)
            next_dweight += (dweight[i] + wdy_i * x_hat_i,)
            next_dbias += (dbias[i] + wdy_i,)
            if weight_ptr is not None:
                weight_i = unpacked_weight(weight[i], first_row, weight_ptr.dtype.element_ty)
                wdy_i *= weight_i.to(COMPUTE_DTYPE)
            x_hat_wdy += tl.sum(x_hat_i * wdy_i, 2)
            wdys += tl.sum(wdy_i, 2)
            x_hat += (x_hat_i,)
            wdy += (wdy_i,)
        dweight = next_dweight
        dbias = next_dbias

        if dx_ptr is not None:
            if CENTERED:
                c1, c2 = two_sums(x_hat_wdy, wdys, 1)
                c2_rstd = divide(c2, cols)[:, None, None] * rstd
            else:
                c1 = tl.sum(x_hat_wdy, 1)
                c2_rstd = 0.0
            c1_rstd = divide(c1, cols)[:, None, None] * rstd
            for i in tl.static_range(TILES):
                dx = wdy[i] * rstd + (x_hat[i] * -c1_rstd - c2_rstd)
                place = base + offsets + i * BLOCK_COLS
                mask = masked(row_mask, i, col, cols, WHOLE, TILE)
                tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=mask)

    store_sums(partials.weight, dweight, cols, TILE)
    store_sums(partials.bias, dbias, cols, TILE)
