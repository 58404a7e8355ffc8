"""Layer normalisation over the last `cols` elements of each row.

    mean = sum(x) / cols                     rstd = 1 / sqrt(sum((x - mean)^2) / cols + eps)
    x_hat = (x - mean) rstd                  y = x_hat weight + bias

    wdy = weight dy                          dweight = sum over rows of dy x_hat
    c1 = sum(x_hat wdy) / cols               dbias = sum over rows of dy
    c2 = sum(wdy) / cols                     dx = (wdy - x_hat c1 - c2) rstd

The mean is computed, saved and subtracted relative to the row's first element, `shift`: float32 would
round a mean of 10^6 by a thirtieth of a standard deviation of 1. Rows that are not centred have no mean,
and there m2 is the sum of x^2: that is RMSNorm (`rms_norm`).

Rows of up to `launch.HELD_WORDS_*` words are held in registers and read once. Wider rows are read in
chunks, twice. Column sums are partial sums a program, added in a fixed order by a last small launch.
"""

import torch
import triton
import triton.language as tl

from . import launch
from .rows import column_sums, load_wdy, load_x_hat
from .statistics import merge_moments, moments


@triton.jit(do_not_specialize=["rows", "cols_in_vectors"])
def layer_norm_forward_kernel(
    x_ptr, y_ptr,                # [rows, cols]
    weight_ptr, bias_ptr,        # [cols] or None
    mean_ptr, rstd_ptr,          # [rows] or None
    rows, cols_in_vectors,
    eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr,
    CENTERED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    cols = cols_in_vectors * VECTOR
    first_row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    row = tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_COLS)
    row_mask = first_row + row < rows
    col_mask = col < cols
    mask = row_mask[:, None] & col_mask[None, :]
    offsets = row[:, None] * cols + col[None, :]
    x_ptr += first_row * cols

    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    if CENTERED:
        shift = tl.load(x_ptr + row * cols, mask=row_mask, other=0.0).to(COMPUTE_DTYPE)
        x -= shift[:, None]
        mean, m2 = moments(x, mask, cols, 1)
        x -= mean[:, None]
    else:
        m2 = tl.sum(x * x, 1)
    rstd = tl.rsqrt(m2 / cols + tl.full([], eps, COMPUTE_DTYPE))
    y = x * rstd[:, None]
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + col, mask=col_mask, other=0.0).to(COMPUTE_DTYPE)[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + col, mask=col_mask, other=0.0).to(COMPUTE_DTYPE)[None, :]

    tl.store(y_ptr + first_row * cols + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)
    if mean_ptr is not None:
        tl.store(mean_ptr + first_row + row, mean, mask=row_mask)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + first_row + row, rstd, mask=row_mask)


@triton.jit(do_not_specialize=["cols_in_vectors"])
def layer_norm_forward_chunked_kernel(
    x_ptr, y_ptr,                # [rows, cols]
    weight_ptr, bias_ptr,        # [cols] or None
    mean_ptr, rstd_ptr,          # [rows] or None
    cols_in_vectors,
    eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr,
    CENTERED: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    cols = cols_in_vectors * VECTOR
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * cols
    y_ptr += row * cols

    m2 = tl.full([], 0.0, COMPUTE_DTYPE)
    if CENTERED:
        shift = tl.load(x_ptr).to(COMPUTE_DTYPE)
        count = tl.zeros_like(shift)
        mean = tl.zeros_like(shift)
    for start in range(0, cols, BLOCK_COLS):
        col = start + tl.arange(0, BLOCK_COLS)
        mask = col < cols
        x = tl.load(x_ptr + col, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        if CENTERED:
            chunk = tl.minimum(cols - start, BLOCK_COLS).to(COMPUTE_DTYPE)
            chunk_mean, chunk_m2 = moments(x - shift, mask, chunk, 0)
            count, mean, m2 = merge_moments(count, mean, m2, chunk, chunk_mean, chunk_m2)
        else:
            m2 += tl.sum(x * x, 0)
    rstd = tl.rsqrt(m2 / cols + tl.full([], eps, COMPUTE_DTYPE))

    for start in range(0, cols, BLOCK_COLS):
        col = start + tl.arange(0, BLOCK_COLS)
        mask = col < cols
        x = tl.load(x_ptr + col, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        if CENTERED:
            x = x - shift - mean
        y = x * rstd
        if weight_ptr is not None:
            y *= tl.load(weight_ptr + col, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + col, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        tl.store(y_ptr + col, y.to(y_ptr.dtype.element_ty), mask=mask)

    if mean_ptr is not None:
        tl.store(mean_ptr + row, mean)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + row, rstd)


@triton.jit(do_not_specialize=["rows", "cols_in_vectors"])
def layer_norm_backward_kernel(
    dy_ptr, x_ptr, dx_ptr,                        # [rows, cols]; dx or None
    weight_ptr,                                   # [cols] or None
    mean_ptr, rstd_ptr,                           # [rows]; mean None where rows are not centred
    dweight_partial_ptr, dbias_partial_ptr,       # [programs, cols] or None
    rows, cols_in_vectors,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Every tile of rows in turn. Where dx is wanted, BLOCK_COLS covers the row."""
    cols = cols_in_vectors * VECTOR
    program = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    col_mask = col < cols
    dweight = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    dbias = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    if dx_ptr is not None and weight_ptr is not None:
        weight = tl.load(weight_ptr + col, mask=col_mask, other=0.0).to(COMPUTE_DTYPE)[None, :]

    for tile in range(program, tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(0)):
        row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        row_mask = row < rows
        mask = row_mask[:, None] & col_mask[None, :]
        offsets = row[:, None] * cols + col[None, :]
        rstd = tl.load(rstd_ptr + row, mask=row_mask, other=0.0)[:, None]
        mean = None
        shift = None
        if mean_ptr is not None:
            mean = tl.load(mean_ptr + row, mask=row_mask, other=0.0)[:, None]
            shift = tl.load(x_ptr + row * cols, mask=row_mask, other=0.0).to(COMPUTE_DTYPE)[:, None]
        x_hat = load_x_hat(x_ptr, offsets, mask, shift, mean, rstd, COMPUTE_DTYPE)
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)

        dweight += dy * x_hat
        dbias += dy
        if dx_ptr is not None:
            wdy = dy
            if weight_ptr is not None:
                wdy = dy * weight
            c1 = tl.sum(x_hat * wdy, 1)[:, None] / cols
            c2 = tl.zeros_like(c1)
            if mean_ptr is not None:
                c2 = tl.sum(wdy, 1)[:, None] / cols
            dx = (wdy - x_hat * c1 - c2) * rstd
            tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)

    partial = program * cols + col
    if dweight_partial_ptr is not None:
        tl.store(dweight_partial_ptr + partial, tl.sum(dweight, 0), mask=col_mask)
    if dbias_partial_ptr is not None:
        tl.store(dbias_partial_ptr + partial, tl.sum(dbias, 0), mask=col_mask)


@triton.jit(do_not_specialize=["cols_in_vectors"])
def layer_norm_backward_input_chunked_kernel(
    dy_ptr, x_ptr, dx_ptr,       # [rows, cols]
    weight_ptr,                  # [cols] or None
    mean_ptr, rstd_ptr,          # [rows]; mean None where rows are not centred
    cols_in_vectors,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    cols = cols_in_vectors * VECTOR
    row = tl.program_id(0).to(tl.int64)
    dy_ptr += row * cols
    x_ptr += row * cols
    dx_ptr += row * cols
    rstd = tl.load(rstd_ptr + row)
    mean = None
    shift = None
    if mean_ptr is not None:
        mean = tl.load(mean_ptr + row)
        shift = tl.load(x_ptr).to(COMPUTE_DTYPE)

    c1 = tl.zeros_like(rstd)
    c2 = tl.zeros_like(rstd)
    for start in range(0, cols, BLOCK_COLS):
        col = start + tl.arange(0, BLOCK_COLS)
        mask = col < cols
        wdy = load_wdy(dy_ptr, weight_ptr, col, mask, COMPUTE_DTYPE)
        x_hat = load_x_hat(x_ptr, col, mask, shift, mean, rstd, COMPUTE_DTYPE)
        c1 += tl.sum(x_hat * wdy, 0) / cols
        if mean_ptr is not None:
            c2 += tl.sum(wdy, 0) / cols

    for start in range(0, cols, BLOCK_COLS):
        col = start + tl.arange(0, BLOCK_COLS)
        mask = col < cols
        wdy = load_wdy(dy_ptr, weight_ptr, col, mask, COMPUTE_DTYPE)
        x_hat = load_x_hat(x_ptr, col, mask, shift, mean, rstd, COMPUTE_DTYPE)
        dx = (wdy - x_hat * c1 - c2) * rstd
        tl.store(dx_ptr + col, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["partials", "cols_in_vectors"])
def layer_norm_backward_finish_kernel(
    dweight_partial_ptr, dbias_partial_ptr,       # [partials, cols] or None
    dweight_ptr, dbias_ptr,                       # [cols] or None
    partials, cols_in_vectors,
    VECTOR: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    cols = cols_in_vectors * VECTOR
    col = tl.program_id(0) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    if dweight_ptr is not None:
        dweight = column_sums(dweight_partial_ptr, partials, cols, col, BLOCK_ROWS)
        tl.store(dweight_ptr + col, dweight.to(dweight_ptr.dtype.element_ty), mask=col < cols)
    if dbias_ptr is not None:
        dbias = column_sums(dbias_partial_ptr, partials, cols, col, BLOCK_ROWS)
        tl.store(dbias_ptr + col, dbias.to(dbias_ptr.dtype.element_ty), mask=col < cols)


def layer_norm_forward(x, weight, bias, cols, eps, out_dtype, save_statistics, centered=True):
    """y in `out_dtype`, and mean and rstd of each row; None where absent or not to be saved."""
    x, weight, bias = launch.contiguous(x, weight, bias)
    rows = x.numel() // cols
    compute_dtype = launch.compute_dtype(x.dtype)
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    mean, rstd = (
        torch.empty(rows, dtype=compute_dtype, device=x.device) if save_statistics and present else None
        for present in (centered, True)
    )
    vector = launch.vector(cols)
    tile = launch.layer_norm_forward_tile(cols, compute_dtype)
    common = dict(
        COMPUTE_DTYPE=launch.triton_dtype(compute_dtype),
        VECTOR=vector,
        CENTERED=centered,
        BLOCK_COLS=tile.cols,
        num_warps=tile.num_warps,
    )
    arguments = (x, y, weight, bias, mean, rstd)
    if tile.cols >= cols:
        launch.launch(
            layer_norm_forward_kernel, (triton.cdiv(rows, tile.rows),), x.device,
            *arguments, rows, cols // vector, eps, BLOCK_ROWS=tile.rows, **common,
        )  # fmt: skip
    else:
        launch.launch(
            layer_norm_forward_chunked_kernel, (rows,), x.device,
            *arguments, cols // vector, eps, **common,
        )  # fmt: skip
    return y, mean, rstd


def layer_norm_backward(dy, x, weight, mean, rstd, cols, parameter_dtype, wanted):
    """The wanted ones of dx, dweight and dbias (flat), None for the others. mean: None where not centred."""
    want_dx, want_dweight, want_dbias = wanted
    dy, x, weight = launch.contiguous(dy, x, weight)
    device, rows, vector = x.device, x.numel() // cols, launch.vector(cols)
    compute_dtype = launch.compute_dtype(x.dtype)
    common = dict(COMPUTE_DTYPE=launch.triton_dtype(compute_dtype), VECTOR=vector)
    tile = launch.layer_norm_backward_tile(cols, compute_dtype)
    held = tile.cols >= cols

    dx = torch.empty(x.shape, dtype=x.dtype, device=device) if want_dx else None
    if want_dx and not held:
        launch.launch(
            layer_norm_backward_input_chunked_kernel, (rows,), device,
            dy, x, dx, weight, mean, rstd, cols // vector,
            BLOCK_COLS=tile.cols, num_warps=tile.num_warps, **common,
        )  # fmt: skip
    if not (want_dweight or want_dbias or held):
        return dx, None, None

    if not held:
        tile = launch.layer_norm_backward_parameters_tile()
    col_blocks = triton.cdiv(cols, tile.cols)
    programs = launch.layer_norm_backward_programs(rows, tile, col_blocks, device)
    dweight_partial, dbias_partial = (
        torch.empty((programs, cols), dtype=compute_dtype, device=device) if want else None
        for want in (want_dweight, want_dbias)
    )
    launch.launch(
        layer_norm_backward_kernel, (programs, col_blocks), device,
        dy, x, dx if held else None, weight, mean, rstd, dweight_partial, dbias_partial,
        rows, cols // vector,
        BLOCK_ROWS=tile.rows, BLOCK_COLS=tile.cols, num_warps=tile.num_warps, **common,
    )  # fmt: skip
    if not (want_dweight or want_dbias):
        return dx, None, None

    dweight, dbias = (
        torch.empty(cols, dtype=parameter_dtype, device=device) if want else None
        for want in (want_dweight, want_dbias)
    )
    tile = launch.layer_norm_backward_finish_tile()
    launch.launch(
        layer_norm_backward_finish_kernel, (triton.cdiv(cols, tile.cols),), device,
        dweight_partial, dbias_partial, dweight, dbias, programs, cols // vector,
        VECTOR=vector, BLOCK_ROWS=tile.rows, BLOCK_COLS=tile.cols, num_warps=tile.num_warps,
    )  # fmt: skip
    return dx, dweight, dbias
