"""Kernel of `ada_norm` for rows that are held in several tiles; the forward alone."""

import triton
import triton.language as tl

from normreg.kernels.ada_norm.tile import FORWARD_SIZES, Modulation, vector_at
from normreg.kernels.device.branch import Inputs, Results
from normreg.kernels.device.rows import Parameters, row_apart
from normreg.kernels.device.statistics import compute_dtype, promoted
from normreg.kernels.device.tiles import load_widened, store_normalized_tiles, store_tile


@triton.jit(do_not_specialize=FORWARD_SIZES)
def ada_norm_forward_tiles_kernel(
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
    """A row a program."""
    added = inputs.x if inputs.residual is None else inputs.residual
    Z_DTYPE: tl.constexpr = promoted(inputs.x.dtype.element_ty, added.dtype.element_ty)
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(Z_DTYPE)
    VECTOR: tl.constexpr = TILE.vector
    TILES: tl.constexpr = TILE.tiles
    cols *= VECTOR
    row = tl.program_id(0)
    sample = row // tokens
    base = row.to(tl.int64) * cols
    x_base = row_apart(x_stride, row, base, VECTOR)
    if modulation.gate is not None:
        gate_ptr = modulation.gate + vector_at(row, sample, gate_stride * VECTOR, PER_TOKEN.gate)
    z = ()
    for i in tl.static_range(TILES):
        tile = load_widened(inputs.x + x_base, i, cols, COMPUTE_DTYPE, TILE)
        if modulation.gate is not None:
            tile *= load_widened(gate_ptr, i, cols, COMPUTE_DTYPE, TILE)
        if inputs.residual is not None:
            tile += load_widened(inputs.residual + base, i, cols, COMPUTE_DTYPE, TILE)
        tile = tile.to(Z_DTYPE)
        if results.z is not None:
            store_tile(results.z + base, tile, i, cols, TILE)
        z += (tile,)

    scale_ptr = modulation.scale + vector_at(row, sample, scale_stride * VECTOR, PER_TOKEN.scale)
    shift_ptr = None
    if modulation.shift is not None:
        shift_ptr = modulation.shift + vector_at(row, sample, shift_stride * VECTOR, PER_TOKEN.shift)
    row = row.to(tl.int64)
    store_normalized_tiles(
        z, results, parameters, row, cols, eps, Z_DTYPE, CENTERED, TILE, scale_ptr, shift_ptr
    )
