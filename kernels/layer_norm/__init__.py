"""Layer normalisation over the last `cols` elements of each row.

    mean = sum(x) / cols                     rstd = 1 / sqrt(sum((x - mean)^2) / cols + eps)
    x_hat = (x - mean) rstd                  y = x_hat weight + bias

    wdy = weight dy                          dweight = sum over rows of dy x_hat
    c1 = sum(x_hat wdy) / cols               dbias = sum over rows of dy
    c2 = sum(wdy) / cols                     dx = (wdy - x_hat c1 - c2) rstd

The mean is computed, saved and subtracted relative to the row's first element, `shift`: float32 would
round a mean of 10^6 by a thirtieth of a standard deviation of 1. Rows that are not centred have no mean,
and there m2 is the sum of x^2: that is RMSNorm (`rms_norm`).

Rows that `tiling` can hold are read once: several in a tile, one in a tile, or one in parts
(`layer_norm_parts`). Wider rows are read twice: in chunks, or in the backward by a launch that finds c1 and
c2, and by one over blocks of columns. Column sums are partial sums a program, added in a fixed order by a
last small launch.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from normreg.kernels import dtypes, launch, tiling
from normreg.kernels.device.rows import (
    column_sums,
    load_normalized,
    load_parameter,
    load_wdy,
    load_x_hat,
    row_strides,
    row_sums,
    row_tile,
    rows_of,
)
from normreg.kernels.device.statistics import merge_moments, moments, rstd_of
from normreg.kernels.layer_norm.tiles import layer_norm_backward_parts_kernel, layer_norm_forward_parts_kernel


@triton.jit(do_not_specialize=["rows", "cols"])
def layer_norm_forward_kernel(
    x_ptr, y_ptr,                # [samples, rows, cols], laid out as `rows` says
    weight_ptr, bias_ptr,        # [cols] or None
    mean_ptr, rstd_ptr,          # [samples, rows] or None
    rows, cols,                  # the contiguous one in vectors
    eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr,
    CENTERED: tl.constexpr, CHANNELS_FIRST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    rows, cols, stride_row, stride_col = row_strides(rows, cols, VECTOR, CHANNELS_FIRST)
    first_row, left, base = row_tile(tl.program_id(0), rows, cols, stride_row, CHANNELS_FIRST, BLOCK_ROWS)
    row = tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_COLS)
    row_mask = row < left
    mask = row_mask[:, None] & (col < cols)[None, :]
    offsets = row[:, None] * stride_row + col[None, :] * stride_col
    x_ptr += base

    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    if CENTERED:
        shift = tl.load(x_ptr + row * stride_row, mask=row_mask, other=0.0).to(COMPUTE_DTYPE)
        x -= shift[:, None]
        mean, m2 = moments(x, mask, cols, 1)
        x -= mean[:, None]
    else:
        m2 = tl.sum(x * x, 1)
    rstd = rstd_of(m2 / cols, eps)
    y = x * rstd[:, None]
    if weight_ptr is not None:
        y *= load_parameter(weight_ptr, col, cols, COMPUTE_DTYPE)
    if bias_ptr is not None:
        y += load_parameter(bias_ptr, col, cols, COMPUTE_DTYPE)

    tl.store(y_ptr + base + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)
    if mean_ptr is not None:
        tl.store(mean_ptr + first_row + row, mean, mask=row_mask)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + first_row + row, rstd, mask=row_mask)


@triton.jit(do_not_specialize=["rows", "cols"])
def layer_norm_forward_chunked_kernel(
    x_ptr, y_ptr,                # [samples, rows, cols], laid out as `rows` says
    weight_ptr, bias_ptr,        # [cols] or None
    mean_ptr, rstd_ptr,          # [samples, rows] or None
    rows, cols,                  # the contiguous one in vectors
    eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr,
    CENTERED: tl.constexpr, CHANNELS_FIRST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    rows, cols, stride_row, stride_col = row_strides(rows, cols, VECTOR, CHANNELS_FIRST)
    first_row, left, base = row_tile(tl.program_id(0), rows, cols, stride_row, CHANNELS_FIRST, BLOCK_ROWS)
    row = tl.arange(0, BLOCK_ROWS)
    row_mask = row < left
    x_ptr += base + row[:, None] * stride_row
    y_ptr += base + row[:, None] * stride_row

    m2 = tl.zeros([BLOCK_ROWS], COMPUTE_DTYPE)
    if CENTERED:
        shift = tl.load(x_ptr, mask=row_mask[:, None], other=0.0).to(COMPUTE_DTYPE)
        count = tl.full([], 0.0, COMPUTE_DTYPE)
        mean = tl.zeros([BLOCK_ROWS], COMPUTE_DTYPE)
    for start in range(0, cols, BLOCK_COLS):
        col = start + tl.arange(0, BLOCK_COLS)
        mask = row_mask[:, None] & (col < cols)[None, :]
        x = tl.load(x_ptr + col[None, :] * stride_col, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        if CENTERED:
            chunk = tl.minimum(cols - start, BLOCK_COLS).to(COMPUTE_DTYPE)
            chunk_mean, chunk_m2 = moments(x - shift, mask, chunk, 1)
            count, mean, m2 = merge_moments(count, mean, m2, chunk, chunk_mean, chunk_m2)
        else:
            m2 += tl.sum(x * x, 1)
    rstd = rstd_of(m2 / cols, eps)

    for start in range(0, cols, BLOCK_COLS):
        col = start + tl.arange(0, BLOCK_COLS)
        mask = row_mask[:, None] & (col < cols)[None, :]
        x = tl.load(x_ptr + col[None, :] * stride_col, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        if CENTERED:
            x = x - shift - mean[:, None]
        y = x * rstd[:, None]
        if weight_ptr is not None:
            y *= load_parameter(weight_ptr, col, cols, COMPUTE_DTYPE)
        if bias_ptr is not None:
            y += load_parameter(bias_ptr, col, cols, COMPUTE_DTYPE)
        tl.store(y_ptr + col[None, :] * stride_col, y.to(y_ptr.dtype.element_ty), mask=mask)

    if mean_ptr is not None:
        tl.store(mean_ptr + first_row + row, mean, mask=row_mask)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + first_row + row, rstd, mask=row_mask)


@triton.jit(do_not_specialize=["rows", "cols", "tiles"])
def layer_norm_backward_kernel(
    dy_ptr, x_ptr, dx_ptr,                        # [samples, rows, cols], laid out as `rows` says; dx or None
    weight_ptr,                                   # [cols] or None
    mean_ptr, rstd_ptr,                           # [samples, rows]; mean None where rows are not centred
    c1_ptr, c2_ptr,                               # [samples, rows], or None where BLOCK_COLS covers the row
    dweight_partial_ptr, dbias_partial_ptr,       # [programs, cols] or None
    rows, cols, tiles,                            # the contiguous one of the first two in vectors
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_FIRST: tl.constexpr,
    IN_BLOCKS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Every tile of rows in turn, of all columns or of a block of them."""
    rows, cols, stride_row, stride_col = row_strides(rows, cols, VECTOR, CHANNELS_FIRST)
    col = tl.arange(0, BLOCK_COLS)
    if IN_BLOCKS:
        col += tl.program_id(0) * BLOCK_COLS
    row = tl.arange(0, BLOCK_ROWS)
    dweight = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    dbias = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    if dx_ptr is not None and weight_ptr is not None:
        weight = load_parameter(weight_ptr, col, cols, COMPUTE_DTYPE)

    for tile in tl.range(tl.program_id(1), tiles, tl.num_programs(1), num_stages=STAGES):
        first_row, left, base = row_tile(tile, rows, cols, stride_row, CHANNELS_FIRST, BLOCK_ROWS)
        row_mask = row < left
        mask = row_mask[:, None] & (col < cols)[None, :]
        offsets = base + row[:, None] * stride_row + col[None, :] * stride_col
        x_hat, rstd = load_normalized(
            x_ptr,
            mean_ptr,
            rstd_ptr,
            base,
            offsets,
            mask,
            first_row,
            row,
            row_mask,
            stride_row,
            COMPUTE_DTYPE,
        )
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)

        dweight += dy * x_hat
        dbias += dy
        if dx_ptr is not None:
            wdy = dy
            if weight_ptr is not None:
                wdy = dy * weight
            c1, c2 = row_sums(x_hat, wdy, cols, c1_ptr, c2_ptr, first_row + row, row_mask, mean_ptr)
            dx = (wdy - x_hat * c1 - c2) * rstd
            tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)

    partial = tl.program_id(1).to(tl.int64) * cols + col
    if dweight_partial_ptr is not None:
        tl.store(dweight_partial_ptr + partial, tl.sum(dweight, 0), mask=col < cols)
    if dbias_partial_ptr is not None:
        tl.store(dbias_partial_ptr + partial, tl.sum(dbias, 0), mask=col < cols)


@triton.jit(do_not_specialize=["rows", "cols"])
def layer_norm_backward_sums_kernel(
    dy_ptr, x_ptr,               # [samples, rows, cols], laid out as `rows` says
    weight_ptr,                  # [cols] or None
    mean_ptr, rstd_ptr,          # [samples, rows]; mean None where rows are not centred
    c1_ptr, c2_ptr,              # [samples, rows]; c2 None where rows are not centred
    rows, cols,                  # the contiguous one in vectors
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_FIRST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    rows, cols, stride_row, stride_col = row_strides(rows, cols, VECTOR, CHANNELS_FIRST)
    first_row, left, base = row_tile(tl.program_id(0), rows, cols, stride_row, CHANNELS_FIRST, BLOCK_ROWS)
    row = tl.arange(0, BLOCK_ROWS)
    row_mask = row < left
    dy_ptr += base + row[:, None] * stride_row
    x_ptr += base + row[:, None] * stride_row
    rstd = tl.load(rstd_ptr + first_row + row, mask=row_mask, other=0.0)[:, None]
    mean = None
    shift = None
    if mean_ptr is not None:
        mean = tl.load(mean_ptr + first_row + row, mask=row_mask, other=0.0)[:, None]
        shift = tl.load(x_ptr, mask=row_mask[:, None], other=0.0).to(COMPUTE_DTYPE)

    c1 = tl.zeros([BLOCK_ROWS], COMPUTE_DTYPE)
    c2 = tl.zeros([BLOCK_ROWS], COMPUTE_DTYPE)
    for start in range(0, cols, BLOCK_COLS):
        col = start + tl.arange(0, BLOCK_COLS)
        mask = row_mask[:, None] & (col < cols)[None, :]
        offsets = col[None, :] * stride_col
        wdy = load_wdy(dy_ptr, weight_ptr, offsets, mask, col, cols, COMPUTE_DTYPE)
        x_hat = load_x_hat(x_ptr, offsets, mask, shift, mean, rstd, COMPUTE_DTYPE)
        c1 += tl.sum(x_hat * wdy, 1) / cols
        if mean_ptr is not None:
            c2 += tl.sum(wdy, 1) / cols
    tl.store(c1_ptr + first_row + row, c1, mask=row_mask)
    if c2_ptr is not None:
        tl.store(c2_ptr + first_row + row, c2, mask=row_mask)


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


@launch.planned
def forward_launch(rows, dtype, eps, centered, device):
    tile = tiling.rows.layer_norm_forward_tile(rows, dtype)
    sizes, constants = rows.sizes()
    if tile.parts > 1:
        kernel = layer_norm_forward_parts_kernel
        constants = dict(VECTOR=constants["VECTOR"], PACKED=tile.packed)
    else:
        kernel = layer_norm_forward_kernel if tile.holds(rows) else layer_norm_forward_chunked_kernel
    return launch.Launch(
        kernel, (rows.tiles(tile),), device, *sizes, eps,
        COMPUTE_DTYPE=dtypes.triton_dtype(dtypes.compute_dtype(dtype)), CENTERED=centered,
        num_warps=tile.num_warps, **tile.constants(), **constants,
    )  # fmt: skip


def layer_norm_forward(
    x, weight, bias, cols, eps, out_dtype, save_statistics, centered=True, channels_first=False
):
    """y in `out_dtype`, and mean and rstd of each row; None where absent or not to be saved.

    A row is the last `cols` elements or, of a channels-first (N, C, *) tensor, the channels of a position.
    """
    x, weight, bias = launch.contiguous(x, weight, bias)
    rows = rows_of(x, cols, channels_first)
    y = torch.empty_like(x, dtype=out_dtype, memory_format=torch.contiguous_format)
    mean = rstd = None
    if save_statistics:
        rstd = torch.empty(rows.count, dtype=dtypes.compute_dtype(x.dtype), device=x.device)
        mean = torch.empty_like(rstd) if centered else None
    launch.launch(forward_launch(rows, x.dtype, eps, centered, x.device), x, y, weight, bias, mean, rstd)
    return y, mean, rstd


class Backward(NamedTuple):
    sums: launch.Launch | None  # of c1 and c2, where the row is too wide to be held
    main: launch.Launch
    in_parts: bool = False


@launch.planned
def backward_launches(rows, dtype, centered, device):
    compute_dtype = dtypes.compute_dtype(dtype)
    sizes, constants = rows.sizes()
    tile = tiling.rows.layer_norm_backward_tile(rows, dtype, centered)
    kernel, sums, col_blocks = layer_norm_backward_kernel, None, 1
    if tile.parts > 1:
        kernel, constants = layer_norm_backward_parts_kernel, dict(VECTOR=constants["VECTOR"])
    else:
        if not tile.holds(rows):
            sums = sums_launch(rows, dtype, device)
            tile = tiling.rows.layer_norm_backward_parameters_tile(rows, dtype)
            col_blocks = triton.cdiv(rows.cols, tile.cols)
        sizes = (*sizes, rows.tiles(tile))
        constants |= dict(IN_BLOCKS=col_blocks > 1, STAGES=tile.stages)
    programs = tiling.rows.layer_norm_backward_programs(tile, rows.tiles(tile), col_blocks, device)
    main = launch.Launch(
        kernel, (col_blocks, programs), device, *sizes, COMPUTE_DTYPE=dtypes.triton_dtype(compute_dtype),
        num_warps=tile.num_warps, **tile.constants(), **constants,
    )  # fmt: skip
    return Backward(sums, main, tile.parts > 1)


@launch.planned
def sums_launch(rows, dtype, device):
    compute_dtype = dtypes.compute_dtype(dtype)
    sizes, constants = rows.sizes()
    tile = tiling.rows.layer_norm_chunk_tile(rows, compute_dtype)
    return launch.Launch(
        layer_norm_backward_sums_kernel, (rows.tiles(tile),), device, *sizes,
        COMPUTE_DTYPE=dtypes.triton_dtype(compute_dtype), num_warps=tile.num_warps,
        **tile.constants(), **constants,
    )  # fmt: skip


def row_sums_of(plan, dy, x, weight, mean, rstd):
    """c1 and c2 of each row, c2 None where rows are not centred; both None without a plan, of rows held."""
    if plan is None:
        return None, None
    c1 = torch.empty_like(rstd)
    c2 = None if mean is None else torch.empty_like(rstd)
    launch.launch(plan, dy, x, weight, mean, rstd, c1, c2)
    return c1, c2


@launch.planned
def finish_launch(partials, cols, device):
    tile, vector = tiling.rows.layer_norm_backward_finish_tile(), tiling.hardware.vector(cols)
    return launch.Launch(
        layer_norm_backward_finish_kernel, (triton.cdiv(cols, tile.cols),), device, partials, cols // vector,
        VECTOR=vector, num_warps=tile.num_warps, **tile.constants(),
    )  # fmt: skip


def finish(partials, wanted, dtype):
    """The wanted column sums, None for the others; `partials` [programs, cols] or None."""
    gradients = [
        torch.empty(partial.shape[1], dtype=dtype, device=partial.device) if want else None
        for partial, want in zip(partials, wanted)
    ]
    present = next((partial for partial in partials if partial is not None), None)
    if present is not None:
        launch.launch(finish_launch(*present.shape, present.device), *partials, *gradients)
    return gradients


def layer_norm_backward(dy, x, weight, mean, rstd, cols, parameter_dtype, wanted, channels_first=False):
    """The wanted ones of dx, dweight and dbias (flat), None for the others. mean: None where not centred."""
    want_dx, *want_parameters = wanted
    dy, x, weight = launch.contiguous(dy, x, weight)
    wider = dy.dtype if dy.dtype.itemsize > x.dtype.itemsize else x.dtype
    launches = backward_launches(rows_of(x, cols, channels_first), wider, mean is not None, x.device)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if want_dx else None
    row_sums = ()
    if not launches.in_parts:
        row_sums = row_sums_of(launches.sums if want_dx else None, dy, x, weight, mean, rstd)
    partials = [
        torch.empty((launches.main.grid[1], cols), dtype=rstd.dtype, device=x.device) if want else None
        for want in want_parameters
    ]
    launch.launch(launches.main, dy, x, dx, weight, mean, rstd, *row_sums, *partials)
    return dx, *finish(partials, want_parameters, parameter_dtype)
