"""Kernels of `ada_norm`, of rows that fit into a tile: several in one, or one.

A modulation, which is gate, scale or shift, is [vectors, cols] with a stride between vectors. A row has one
of its own where PER_TOKEN says so, or shares its sample's. A sample is `tokens` rows, of x `x_stride` apart
where that is given.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from normreg.kernels.device.branch import Incoming, Inputs, Results
from normreg.kernels.device.rows import (
    Parameters,
    Statistics,
    gradient_of_x,
    load,
    load_mean,
    load_parameter,
    load_spread,
    load_x_hat,
    normalized,
    row_strides,
    row_tile,
    rows_apart,
    scale_and_shift,
    store,
    store_partial,
)
from normreg.kernels.device.statistics import compute_dtype, promoted

FORWARD_SIZES = ["rows", "cols", "tokens", "x_stride", "gate_stride", "scale_stride", "shift_stride"]


class Modulation(NamedTuple):
    """[vectors, cols] each, with a stride of its own; or None."""

    gate: tl.tensor
    scale: tl.tensor
    shift: tl.tensor


class Gradients(NamedTuple):
    """[rows, cols] each, or None, as are those of a gate and a scale that are not the rows' own."""

    x: tl.tensor
    residual: tl.tensor
    gate: tl.tensor
    scale: tl.tensor


class Partials(NamedTuple):
    """Sums over a program's rows of g x_hat, g and dz x, [samples, programs, cols] each, or None."""

    products: tl.tensor
    sums: tl.tensor
    gate: tl.tensor


@triton.jit
def vector_at(row, sample, stride, PER_TOKEN: tl.constexpr):
    """Where the vector of a row begins."""
    vector = row if PER_TOKEN else sample
    return vector.to(tl.int64) * stride


@triton.jit
def load_modulation(ptr, row, sample, stride, mask, col, PER_TOKEN: tl.constexpr, DTYPE: tl.constexpr):
    """The vector of each row, [rows, cols]."""
    place = vector_at(row, sample, stride, PER_TOKEN)
    return load(ptr, place[:, None] + col[None, :], mask, DTYPE)


@triton.jit(do_not_specialize=FORWARD_SIZES)
def ada_norm_forward_kernel(
    inputs: Inputs,
    modulation: Modulation,
    results: Results,
    parameters: Parameters,
    rows,
    cols,  # in vectors, as are strides
    tokens,
    x_stride,
    gate_stride,
    scale_stride,
    shift_stride,
    eps: tl.float64,
    CENTERED: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    TILE: tl.constexpr,
):
    added = inputs.x if inputs.residual is None else inputs.residual
    Z_DTYPE: tl.constexpr = promoted(inputs.x.dtype.element_ty, added.dtype.element_ty)
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(Z_DTYPE)
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    VECTOR: tl.constexpr = TILE.vector
    rows, cols, stride_row, _ = row_strides(rows, cols, VECTOR, False)
    first_row, left, base = row_tile(tl.program_id(0), rows, cols, stride_row, False, BLOCK_ROWS)
    row = tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_COLS)
    row_mask = row < left
    mask = row_mask[:, None] & (col < cols)[None, :]
    offsets = base + row[:, None] * stride_row + col[None, :]
    x_base, x_offsets = rows_apart(x_stride, first_row, row, col, 0, offsets, VECTOR)
    row = first_row + row
    sample = row.to(rows.dtype) // tokens

    z = load(inputs.x + x_base, x_offsets, mask, COMPUTE_DTYPE)
    if modulation.gate is not None:
        stride = gate_stride * VECTOR
        z *= load_modulation(modulation.gate, row, sample, stride, mask, col, PER_TOKEN.gate, COMPUTE_DTYPE)
    if inputs.residual is not None:
        z += load(inputs.residual, offsets, mask, COMPUTE_DTYPE)
    z = z.to(Z_DTYPE)
    store(results.z, offsets, z, mask)

    z = z.to(COMPUTE_DTYPE)
    x_hat = normalized(z, results.statistics, mask, row, row_mask, cols, eps, CENTERED, TILE)
    y = scale_and_shift(x_hat, parameters, col, cols)
    stride = scale_stride * VECTOR
    y *= 1.0 + load_modulation(
        modulation.scale, row, sample, stride, mask, col, PER_TOKEN.scale, COMPUTE_DTYPE
    )
    if modulation.shift is not None:
        stride = shift_stride * VECTOR
        y += load_modulation(modulation.shift, row, sample, stride, mask, col, PER_TOKEN.shift, COMPUTE_DTYPE)
    store(results.y, offsets, y, mask)


@triton.jit(do_not_specialize=["tokens", "cols", "x_stride", "gate_stride", "scale_stride"])
def ada_norm_backward_kernel(
    incoming: Incoming,
    gradients: Gradients,
    modulation: Modulation,
    parameters: Parameters,
    statistics: Statistics,  # c1 and c2 None
    partials: Partials,
    tokens,
    cols,  # in vectors, as are strides
    x_stride,  # of x or, where there is none, of z, which then may be the input
    gate_stride,
    scale_stride,
    CENTERED: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    TILE: tl.constexpr,
):
    """Every tile of rows of a sample in turn."""
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(incoming.z.dtype.element_ty)
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    STAGES: tl.constexpr = TILE.stages
    tokens, cols, stride_row, _ = row_strides(tokens, cols, TILE.vector, False)
    gate_stride *= TILE.vector
    scale_stride *= TILE.vector
    sample = tl.program_id(0).to(tl.int64)
    samples = tl.full([1], 0, tl.int64) + sample
    first_of_sample = sample * tokens
    row = tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_COLS)
    products = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    sums = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    dgate = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    weight = None
    if parameters.weight is not None:
        weight = load_parameter(parameters.weight, col, cols, COMPUTE_DTYPE)
    if not PER_TOKEN.scale:
        factor = 1.0 + load_parameter(modulation.scale + sample * scale_stride, col, cols, COMPUTE_DTYPE)
        weight = factor if weight is None else weight * factor

    for tile in tl.range(
        tl.program_id(1), tl.cdiv(tokens, BLOCK_ROWS), tl.num_programs(1), num_stages=STAGES
    ):
        first_row, left, base = row_tile(tile, tokens, cols, stride_row, False, BLOCK_ROWS)
        row_mask = row < left
        mask = row_mask[:, None] & (col < cols)[None, :]
        offsets = first_of_sample * stride_row + base + row[:, None] * stride_row + col[None, :]
        first_row += first_of_sample
        x_base, x_offsets = rows_apart(x_stride, first_row, row, col, 0, offsets, TILE.vector)
        rows = first_row + row
        mean = None
        if CENTERED:
            mean = load_mean(statistics.saved, rows, row_mask)
        rstd = load_spread(statistics.saved, rows, row_mask, CENTERED)
        z_ptr, z_offsets = incoming.z, offsets
        if incoming.x is None:
            z_ptr, z_offsets = z_ptr + x_base, x_offsets
        x_hat = load_x_hat(z_ptr, z_offsets, mask, mean, rstd, COMPUTE_DTYPE, TILE.whole, STAGES)
        dy = load(incoming.dy, offsets, mask, COMPUTE_DTYPE, STAGES)
        if PER_TOKEN.scale:
            if gradients.scale is not None:
                store(gradients.scale, offsets, dy * scale_and_shift(x_hat, parameters, col, cols), mask)
            dy *= 1.0 + load_modulation(
                modulation.scale, rows, samples, scale_stride, mask, col, True, COMPUTE_DTYPE
            )
        sums += dy
        products += dy * x_hat
        dz = gradient_of_x(dy, weight, x_hat, rstd, cols, statistics, rows, row_mask, CENTERED)
        if incoming.dz is not None:
            dz += load(incoming.dz, offsets, mask, COMPUTE_DTYPE, STAGES)
        store(gradients.residual, offsets, dz, mask)
        if incoming.x is not None:
            of_gate = dz * load(incoming.x + x_base, x_offsets, mask, COMPUTE_DTYPE, STAGES)
            store(gradients.gate, offsets, of_gate, mask)
            dgate += of_gate
        if modulation.gate is not None:
            dz *= load_modulation(
                modulation.gate, rows, samples, gate_stride, mask, col, PER_TOKEN.gate, COMPUTE_DTYPE
            )
        store(gradients.x, offsets, dz, mask)

    place = sample * tl.num_programs(1) * cols
    if partials.products is not None:
        store_partial(partials.products + place, products, col, cols)
    if partials.sums is not None:
        store_partial(partials.sums + place, sums, col, cols)
    if partials.gate is not None:
        store_partial(partials.gate + place, dgate, col, cols)
