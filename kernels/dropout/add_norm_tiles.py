"""Kernel of `dropout.add_norm` for rows that are held in several tiles; the forward alone."""

import triton
import triton.language as tl

from normreg.kernels.device.branch import Inputs, Results, branch, decisions
from normreg.kernels.device.random import load_seed
from normreg.kernels.device.statistics import compute_dtype
from normreg.kernels.device.tiles import load_widened, store_normalized_tiles, store_tile
from normreg.kernels.device.words import packed
from normreg.kernels.dropout.add_norm_tile import Parameters


@triton.jit(do_not_specialize=["seed_ptr", "seed", "rows", "cols", "rows_per_sample", "keep_threshold"])
def dropout_add_norm_forward_tiles_kernel(
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
    """A row a program."""
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(Z_DTYPE)
    BLOCK_COLS: tl.constexpr = TILE.cols
    TILES: tl.constexpr = TILE.tiles
    cols *= TILE.vector
    row = tl.program_id(0).to(tl.int64)
    base = row * cols
    drop = load_seed(seed_ptr, seed), rows_per_sample, keep_threshold, scale

    z = ()
    one_row = row + tl.arange(0, 1)
    for i in tl.static_range(TILES):
        keep, factor = decisions(
            drop,
            parameters.row_scale,
            one_row,
            one_row < rows,
            cols,
            i * BLOCK_COLS,
            COMPUTE_DTYPE,
            BITS,
            False,
            BLOCK_COLS,
        )
        x = load_widened(inputs.x + base, i, cols, COMPUTE_DTYPE, TILE)
        tile = branch(x[None, :], keep, factor).reshape(BLOCK_COLS)
        if parameters.layer_scale is not None:
            tile *= load_widened(parameters.layer_scale, i, cols, COMPUTE_DTYPE, TILE)
        if inputs.residual is not None:
            tile += load_widened(inputs.residual + base, i, cols, COMPUTE_DTYPE, TILE)
        tile = tile.to(Z_DTYPE)
        if results.z is not None:
            store_tile(results.z + base, tile, i, cols, TILE)
        z += (packed(tile) if TILE.packed else tile,)
    store_normalized_tiles(z, results, parameters, row, cols, eps, Z_DTYPE, CENTERED, TILE)
