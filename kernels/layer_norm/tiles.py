"""LayerNorm, whose formulas are in `layer_norm`, of rows that are held in parts."""

import triton
import triton.language as tl

from normreg.kernels.device.statistics import rstd_of
from normreg.kernels.device.tiles import converted, load_part, load_parts, store_part, within


@triton.jit
def deviation(
    x, after, shift, mean, i: tl.constexpr, cols,
    DTYPE: tl.constexpr, COMPUTE_DTYPE: tl.constexpr, PACKED: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Part i minus the mean, 0 beyond the row whatever its statistics are; mean None of rows not centred."""
    part = converted(x[i], after, cols, DTYPE, COMPUTE_DTYPE, PACKED)
    if mean is not None:
        part = within(part - shift - mean, i, cols, PARTS)
    return part


@triton.jit
def store_normalized(
    x, shift,                    # the parts of a row; what its mean is relative to, None if not centred
    y_ptr,                       # [rows, cols]
    weight_ptr, bias_ptr,        # [cols] or None
    mean_ptr, rstd_ptr,          # [rows] or None
    row, cols, eps,
    DTYPE: tl.constexpr, COMPUTE_DTYPE: tl.constexpr, CENTERED: tl.constexpr, PACKED: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """y, mean and rstd."""
    mean = None
    after = cols
    if CENTERED:
        total = tl.zeros([BLOCK_COLS], COMPUTE_DTYPE)
        for i in tl.static_range(PARTS):
            part = converted(x[i], after, cols, DTYPE, COMPUTE_DTYPE, PACKED) - shift
            total += within(part, i, cols, PARTS)
        mean = tl.sum(total) / cols
        after = mean
    squares = tl.zeros([BLOCK_COLS], COMPUTE_DTYPE)
    for i in tl.static_range(PARTS):
        part = deviation(x, after, shift, mean, i, cols, DTYPE, COMPUTE_DTYPE, PACKED, PARTS)
        squares += part * part
    rstd = rstd_of(tl.sum(squares) / cols, eps)
    if mean_ptr is not None:
        tl.store(mean_ptr + row, mean)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + row, rstd)

    for i in tl.static_range(PARTS):
        y = deviation(x, rstd, shift, mean, i, cols, DTYPE, COMPUTE_DTYPE, PACKED, PARTS) * rstd
        if weight_ptr is not None:
            y *= load_part(weight_ptr, i, cols, PARTS, BLOCK_COLS).to(COMPUTE_DTYPE)
        if bias_ptr is not None:
            y += load_part(bias_ptr, i, cols, PARTS, BLOCK_COLS).to(COMPUTE_DTYPE)
        store_part(y_ptr + row * cols, y, i, cols, PARTS)


@triton.jit(do_not_specialize=["rows", "cols"])
def layer_norm_forward_parts_kernel(
    x_ptr, y_ptr,                # [rows, cols]
    weight_ptr, bias_ptr,        # [cols] or None
    mean_ptr, rstd_ptr,          # [rows] or None
    rows, cols,                  # the latter in vectors
    eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr, CENTERED: tl.constexpr, PACKED: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """A row."""
    cols *= VECTOR
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * cols
    x = load_parts(x_ptr, cols, PACKED, PARTS, BLOCK_COLS)
    shift = None
    if CENTERED:
        shift = tl.load(x_ptr).to(COMPUTE_DTYPE)
    store_normalized(
        x, shift, y_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, row, cols, eps,
        x_ptr.dtype.element_ty, COMPUTE_DTYPE, CENTERED, PACKED, PARTS, BLOCK_COLS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "cols"])
def layer_norm_backward_parts_kernel(
    dy_ptr, x_ptr, dx_ptr,                        # [rows, cols]; the first two of 16 bits; dx or None
    weight_ptr,                                   # [cols] or None
    mean_ptr, rstd_ptr,                           # [rows]; mean None where rows are not centred
    dweight_partial_ptr, dbias_partial_ptr,       # [programs, cols] or None
    rows, cols,                                   # the latter in vectors
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr, PARTS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Every row in turn."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    DY_DTYPE: tl.constexpr = dy_ptr.dtype.element_ty
    cols *= VECTOR
    dweight = ()
    dbias = ()
    for _ in tl.static_range(PARTS):
        dweight += (tl.zeros([BLOCK_COLS], COMPUTE_DTYPE),)
        dbias += (tl.zeros([BLOCK_COLS], COMPUTE_DTYPE),)

    for row in range(tl.program_id(1), rows, tl.num_programs(1)):
        base = cols.to(tl.int64) * row
        x = load_parts(x_ptr + base, cols, True, PARTS, BLOCK_COLS)
        dy = load_parts(dy_ptr + base, cols, True, PARTS, BLOCK_COLS)
        rstd = tl.load(rstd_ptr + row)
        mean = None
        shift = None
        if mean_ptr is not None:
            mean = tl.load(mean_ptr + row)
            shift = tl.load(x_ptr + base).to(COMPUTE_DTYPE)
        if weight_ptr is not None:
            row_weight_ptr = weight_ptr + tl.minimum(row, 0) * 16  # itself, but not held beyond the row

        after = rstd
        if dx_ptr is not None:
            # of the elements of a thread: of all columns they would take its last registers
            x_hat_wdy = tl.zeros([BLOCK_COLS // VECTOR], COMPUTE_DTYPE)
            wdys = tl.zeros([BLOCK_COLS // VECTOR], COMPUTE_DTYPE)
            for i in tl.static_range(PARTS):
                x_hat = rstd * deviation(x, after, shift, mean, i, cols, DTYPE, COMPUTE_DTYPE, True, PARTS)
                wdy = converted(dy[i], after, cols, DY_DTYPE, COMPUTE_DTYPE, True)
                if weight_ptr is not None:
                    wdy *= load_part(row_weight_ptr, i, cols, PARTS, BLOCK_COLS).to(COMPUTE_DTYPE)
                x_hat_wdy += tl.sum(tl.reshape(x_hat * wdy, [BLOCK_COLS // VECTOR, VECTOR]), 1)
                wdys += tl.sum(tl.reshape(wdy, [BLOCK_COLS // VECTOR, VECTOR]), 1)
            c1 = tl.sum(x_hat_wdy) / cols
            c2 = tl.zeros_like(c1)
            if mean_ptr is not None:
                c2 = tl.sum(wdys) / cols
            after = c1

        next_dweight = ()
        next_dbias = ()
        for i in tl.static_range(PARTS):
            x_hat = rstd * deviation(x, after, shift, mean, i, cols, DTYPE, COMPUTE_DTYPE, True, PARTS)
            wdy = converted(dy[i], after, cols, DY_DTYPE, COMPUTE_DTYPE, True)
            next_dweight += (dweight[i] + wdy * x_hat,)
            next_dbias += (dbias[i] + wdy,)
            if dx_ptr is not None:
                if weight_ptr is not None:
                    wdy *= load_part(row_weight_ptr, i, cols, PARTS, BLOCK_COLS).to(COMPUTE_DTYPE)
                dx = (wdy - x_hat * c1 - c2) * rstd
                store_part(dx_ptr + base, dx, i, cols, PARTS)
        dweight = next_dweight
        dbias = next_dbias

    partial = tl.program_id(1).to(tl.int64) * cols
    for i in tl.static_range(PARTS):
        if dweight_partial_ptr is not None:
            store_part(dweight_partial_ptr + partial, dweight[i], i, cols, PARTS)
        if dbias_partial_ptr is not None:
            store_part(dbias_partial_ptr + partial, dbias[i], i, cols, PARTS)
