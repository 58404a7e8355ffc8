"""LayerNorm's backward of rows whose x_hat and wdy are held in float32, by the formulas of `layer_norm`.

A program takes a few rows at a time, each over some of its warps and in several tiles, and a multiprocessor
runs one program, so that there is one row of partial sums a multiprocessor. A tile is [rows, cols / 8, 8]: a
thread has 8 elements of one row, and adds up those of all tiles before it exchanges sums with others. They
are loaded as words [rows, cols / 8, 4]. Statistics are loaded a step ahead into registers: copied to shared
memory beside x and dy they take three times the instructions.
"""

import triton
import triton.language as tl

from normreg.kernels.device.rows import Parameters, Statistics, load_mean, load_spread
from normreg.kernels.device.statistics import compute_dtype, divide, two_sums
from normreg.kernels.device.words import packed, unpacked, widened, words_at


@triton.jit
def columns(WIDTH: tl.constexpr, TILE: tl.constexpr):
    """The columns [1, cols / 8, WIDTH] of the first tile: elements where WIDTH is 8, words where it is 4."""
    return tl.arange(0, TILE.cols // 8)[None, :, None] * WIDTH + tl.arange(0, WIDTH)[None, None, :]


@triton.jit
def masked(mask, i: tl.constexpr, col, cols, TILE: tl.constexpr):
    """The mask of tile i, of which only the last can be short of columns."""
    if i == TILE.tiles - 1 and not TILE.whole:
        mask = mask & (col < cols)
    return mask


@triton.jit
def load_words(ptr, stride, row, row_mask, i: tl.constexpr, cols, TILE: tl.constexpr):
    """Tile i of rows that are read once, 0 where masked."""
    cols = cols // 2
    col = columns(4, TILE) + i * (TILE.cols // 2)
    mask = masked(row_mask, i, col, cols, TILE)
    return tl.load(
        words_at(ptr) + row * (stride // 2) + col, mask=mask, other=0, eviction_policy="evict_first"
    )


@triton.jit
def load_weight(ptr, i: tl.constexpr, cols, TILE: tl.constexpr):
    """Tile i of the weight for each of the rows, packed where TILE says so, which leaves more registers."""
    col = columns(8, TILE) + i * TILE.cols
    col = tl.broadcast_to(col, (TILE.rows, TILE.cols // 8, 8))  # so a thread loads 8, as of x
    weight = tl.load(ptr + col, mask=masked(col >= 0, i, col, cols, TILE), other=0.0)
    if TILE.packed and weight.dtype.primitive_bitwidth == 16:
        weight = packed(weight)
    return weight


@triton.jit
def weight_of(weight, left, DTYPE: tl.constexpr, COMPUTE_DTYPE: tl.constexpr):
    """A tile of the weight that `load_weight` loads; left, at least 1, has it unpacked anew in every step."""
    if weight.dtype == tl.int32:
        return unpacked(weight ^ tl.minimum(left, 0).to(tl.int32), DTYPE, COMPUTE_DTYPE)
    else:
        return widened(weight, COMPUTE_DTYPE)


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
        col = tl.reshape(columns(8, TILE), (TILE.cols // 8, 8))
        TILES: tl.constexpr = TILE.tiles
        for i in tl.static_range(TILES):
            tl.store(ptr + col + i * TILE.cols, sum_over_rows(sums[i]), mask=col + i * TILE.cols < cols)


@triton.jit
def load_statistics(ptr, row, left, CENTERED: tl.constexpr):
    """rstd of the first `left` of a few rows and, where they are centred, both parts of their means."""
    statistics = (load_spread(ptr, row, row < left, CENTERED),)
    if CENTERED:
        mean = load_mean(ptr, row, row < left)
        statistics += (mean.high, mean.low)
    return statistics


@triton.jit(do_not_specialize=["rows", "cols", "stride", "rows_at_once"])
def layer_norm_backward_held_kernel(
    dy_ptr,  # [rows, cols] of 16 bits; so is x
    x_ptr,
    dx_ptr,  # [rows, cols] or None
    weight_ptr,  # [cols] or None
    statistics: Statistics,  # c1 and c2 None
    partials: Parameters,  # [programs, cols] or None
    rows,
    cols,  # in vectors
    stride,  # from a row of x to the next, in vectors; None where they lie like dy's
    rows_at_once,  # TILE's or fewer
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Every few rows in turn."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    DY_DTYPE: tl.constexpr = dy_ptr.dtype.element_ty
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(DTYPE)
    ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    TILES: tl.constexpr = TILE.tiles
    STAGES: tl.constexpr = TILE.stages
    SAVED: tl.constexpr = 3 if CENTERED else 1
    SHAPE: tl.constexpr = (ROWS, BLOCK_COLS // 8, 8)
    cols *= 8
    row = tl.arange(0, ROWS)
    rows_of_tile = row[:, None, None]
    col = columns(8, TILE)
    dweight = ()
    dbias = ()
    weight = ()
    for i in tl.static_range(TILES):
        dweight += (tl.zeros(SHAPE, COMPUTE_DTYPE),)
        dbias += (tl.zeros(SHAPE, COMPUTE_DTYPE),)
        if weight_ptr is not None:
            weight += (load_weight(weight_ptr, i, cols, TILE),)

    of_cols = divide(tl.full([], 1.0, COMPUTE_DTYPE), cols)
    rows_of_step = tl.num_programs(1) * rows_at_once
    start = tl.program_id(1) * rows_at_once
    tl.assume(start < rows)  # or sums of no step would be moved to those of steps
    step = rows_of_step * cols.to(tl.int64)
    x_stride = cols if stride is None else stride.to(tl.int64) * 8
    x_step = rows_of_step * x_stride.to(tl.int64)
    dy_ptr += start * cols.to(tl.int64)
    x_ptr += start * x_stride.to(tl.int64)
    if dx_ptr is not None:
        dx_ptr += start * cols.to(tl.int64)
    saved_ptr = statistics.saved + start.to(tl.int64) * SAVED
    of_rows = load_statistics(saved_ptr, row, tl.minimum(rows - start, rows_at_once), CENTERED)
    for first_row in tl.range(start, rows, rows_of_step, num_stages=STAGES):
        left = rows - first_row
        row_mask = rows_of_tile < tl.minimum(left, rows_at_once)
        saved_ptr += rows_of_step * SAVED
        next_of_rows = load_statistics(
            saved_ptr, row, tl.minimum(left - rows_of_step, rows_at_once), CENTERED
        )
        x = ()
        dy = ()
        for i in tl.static_range(TILES):
            x += (load_words(x_ptr, x_stride, rows_of_tile, row_mask, i, cols, TILE),)
            dy += (load_words(dy_ptr, cols, rows_of_tile, row_mask, i, cols, TILE),)

        rstd = of_rows[0][:, None, None]
        x_hat = ()
        wdy = ()
        next_dweight = ()
        next_dbias = ()
        for i in tl.static_range(TILES):
            x_hat_i = unpacked(x[i], DTYPE, COMPUTE_DTYPE)
            if CENTERED:
                x_hat_i = (x_hat_i - of_rows[1][:, None, None]) * rstd + of_rows[2][:, None, None] * -rstd
                if i == TILES - 1 and not TILE.whole:
                    x_hat_i = tl.where(col + i * BLOCK_COLS < cols, x_hat_i, 0.0)
            else:
                x_hat_i *= rstd
            wdy_i = unpacked(dy[i], DY_DTYPE, COMPUTE_DTYPE)
            next_dweight += (dweight[i] + wdy_i * x_hat_i,)
            next_dbias += (dbias[i] + wdy_i,)
            if weight_ptr is not None:
                wdy_i *= weight_of(weight[i], left, weight_ptr.dtype.element_ty, COMPUTE_DTYPE)
            if i == 0:
                x_hat_wdy = tl.sum(x_hat_i * wdy_i, 2)
                wdys = tl.sum(wdy_i, 2)
            else:
                x_hat_wdy += tl.sum(x_hat_i * wdy_i, 2)
                wdys += tl.sum(wdy_i, 2)
            x_hat += (x_hat_i,)
            wdy += (wdy_i,)
        dweight = next_dweight
        dbias = next_dbias

        if dx_ptr is not None:
            share = -rstd * of_cols
            if CENTERED:
                c1, c2 = two_sums(x_hat_wdy, wdys, 1)
                minus_c2_rstd = c2[:, None, None] * share
            else:
                c1 = tl.sum(x_hat_wdy, 1)
                minus_c2_rstd = 0.0
            minus_c1_rstd = c1[:, None, None] * share
            for i in tl.static_range(TILES):
                dx = wdy[i] * rstd + (x_hat[i] * minus_c1_rstd + minus_c2_rstd)
                place = rows_of_tile * cols + col + i * BLOCK_COLS
                mask = masked(row_mask, i, col + i * BLOCK_COLS, cols, TILE)
                tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=mask)
            dx_ptr += step
        x_ptr += x_step
        dy_ptr += step
        of_rows = next_of_rows

    store_sums(partials.weight, dweight, cols, TILE)
    store_sums(partials.bias, dbias, cols, TILE)
