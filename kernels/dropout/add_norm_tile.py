"""Kernels of `dropout.add_norm` for rows that fit into a tile; the backward also takes blocks of columns."""

from typing import NamedTuple

import triton
import triton.language as tl

from normreg.kernels.device.branch import Incoming, Inputs, Results, branch, decisions, load_z
from normreg.kernels.device.random import load_seed
from normreg.kernels.device.rows import (
    Statistics,
    gradient_of_x,
    load,
    load_mean,
    load_parameter,
    load_spread,
    load_x_hat,
    row_strides,
    row_tile,
    store,
    store_normalized,
    store_partial,
)
from normreg.kernels.device.statistics import compute_dtype


class Parameters(NamedTuple):
    """[cols] each, row_scale [samples]; or None."""

    weight: tl.tensor
    bias: tl.tensor
    layer_scale: tl.tensor
    row_scale: tl.tensor


class Gradients(NamedTuple):
    """[rows, cols] each, or None."""

    x: tl.tensor
    residual: tl.tensor


class Scales(NamedTuple):
    """[cols] each, row_scale [samples]; or None."""

    weight: tl.tensor
    layer_scale: tl.tensor
    row_scale: tl.tensor


class Partials(NamedTuple):
    """[programs, cols] each, or None."""

    weight: tl.tensor
    bias: tl.tensor
    layer_scale: tl.tensor


@triton.jit(do_not_specialize=["seed_ptr", "seed", "rows", "cols", "rows_per_sample", "keep_threshold"])
def dropout_add_norm_forward_kernel(
    inputs: Inputs,
    results: Results,
    parameters: Parameters,
    seed_ptr,  # int64 scalar, added to `seed`; None where nothing is drawn
    seed: tl.int64,
    rows,
    cols,  # in vectors
    rows_per_sample,
    keep_threshold: tl.int64,
    scale: tl.float64,
    eps: tl.float64,
    Z_DTYPE: tl.constexpr,
    CENTERED: tl.constexpr,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
):
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(Z_DTYPE)
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    rows, cols, stride_row, _ = row_strides(rows, cols, TILE.vector, False)
    drop = load_seed(seed_ptr, seed), rows_per_sample, keep_threshold, scale
    first_row, left, base = row_tile(tl.program_id(0), rows, cols, stride_row, False, BLOCK_ROWS)
    row = tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_COLS)
    row_mask = row < left
    mask = row_mask[:, None] & (col < cols)[None, :]
    offsets = base + row[:, None] * stride_row + col[None, :]
    keep, factor = decisions(
        drop, parameters.row_scale, first_row + row, row_mask, cols, 0, COMPUTE_DTYPE, BITS, False, BLOCK_COLS
    )
    z = load_z(inputs, parameters.layer_scale, 0, offsets, mask, col, cols, keep, factor, COMPUTE_DTYPE)
    z = z.to(Z_DTYPE)
    store(results.z, offsets, z, mask)

    store_normalized(
        z.to(COMPUTE_DTYPE),
        results,
        parameters,
        0,
        offsets,
        mask,
        first_row + row,
        row_mask,
        col,
        cols,
        eps,
        CENTERED,
        TILE,
    )


@triton.jit(do_not_specialize=["seed_ptr", "seed", "rows", "cols", "rows_per_sample", "keep_threshold"])
def dropout_add_norm_backward_kernel(
    incoming: Incoming,
    gradients: Gradients,
    scales: Scales,
    statistics: Statistics,  # c1 and c2 None where TILE covers the row
    partials: Partials,
    seed_ptr,  # int64 scalar, added to `seed`; None where nothing is drawn
    seed: tl.int64,
    rows,
    cols,  # in vectors
    rows_per_sample,
    keep_threshold: tl.int64,
    scale: tl.float64,
    CENTERED: tl.constexpr,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Every tile of rows of a block of columns in turn."""
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(incoming.z.dtype.element_ty)
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    rows, cols, stride_row, _ = row_strides(rows, cols, TILE.vector, False)
    drop = load_seed(seed_ptr, seed), rows_per_sample, keep_threshold, scale
    row = tl.arange(0, BLOCK_ROWS)
    first_col = tl.program_id(0) * BLOCK_COLS
    col = first_col + tl.arange(0, BLOCK_COLS)
    dweight = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    dbias = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    dlayer_scale = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    weight = None
    if scales.weight is not None:
        weight = load_parameter(scales.weight, col, cols, COMPUTE_DTYPE)

    for tile in range(tl.program_id(1), tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(1)):
        first_row, left, base = row_tile(tile, rows, cols, stride_row, False, BLOCK_ROWS)
        row_mask = row < left
        mask = row_mask[:, None] & (col < cols)[None, :]
        offsets = base + row[:, None] * stride_row + col[None, :]
        mean = None
        if CENTERED:
            mean = load_mean(statistics.saved, first_row + row, row_mask)
        rstd = load_spread(statistics.saved, first_row + row, row_mask, CENTERED)
        x_hat = load_x_hat(incoming.z, offsets, mask, mean, rstd, COMPUTE_DTYPE, TILE.whole)
        dy = load(incoming.dy, offsets, mask, COMPUTE_DTYPE)
        dweight += dy * x_hat
        dbias += dy
        dz = gradient_of_x(dy, weight, x_hat, rstd, cols, statistics, first_row + row, row_mask, CENTERED)
        if incoming.dz is not None:
            dz += load(incoming.dz, offsets, mask, COMPUTE_DTYPE)
        store(gradients.residual, offsets, dz, mask)

        keep, factor = decisions(
            drop,
            scales.row_scale,
            first_row + row,
            row_mask,
            cols,
            first_col,
            COMPUTE_DTYPE,
            BITS,
            False,
            BLOCK_COLS,
        )
        if partials.layer_scale is not None:
            dlayer_scale += dz * branch(load(incoming.x, offsets, mask, COMPUTE_DTYPE), keep, factor)
        if gradients.x is not None:
            dx = branch(dz, keep, factor)
            if scales.layer_scale is not None:
                dx *= load_parameter(scales.layer_scale, col, cols, COMPUTE_DTYPE)
            store(gradients.x, offsets, dx, mask)

    store_partial(partials.weight, dweight, col, cols)
    store_partial(partials.bias, dbias, col, cols)
    store_partial(partials.layer_scale, dlayer_scale, col, cols)
