"""Dropout, row scale and layer scale of x [rows, cols], added to a residual.

    z = residual + layer_scale row_scale x / keep       where kept, else residual

    dresidual = dz                     dx = layer_scale row_scale dz / keep     where kept, else 0
                                       dlayer_scale = sum over rows of dz row_scale x / keep

The decisions are those of `branch`, a function of the seed and the logical index. dx is the branch of dz, so
without a layer scale the backward is the forward without a residual. Bytes: x, residual and z, 6 in 16 bits;
dz and dx, 4, and x for dlayer_scale. dresidual is dz itself.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from normreg.kernels import dtypes, launch, tiling
from normreg.kernels.column_sums import column_sums
from normreg.kernels.device.branch import Inputs, branch, decisions, load_z
from normreg.kernels.device.random import load_seed
from normreg.kernels.device.rows import elements_of_rows, load, load_parameter, store, store_partial
from normreg.kernels.device.statistics import compute_dtype
from normreg.kernels.dropout.drop import Drop, seed_arguments
from normreg.kernels.memory_format import contiguous
from normreg.kernels.tiling.rows import RowTile


class Scales(NamedTuple):
    layer_scale: tl.tensor  # [cols] or None
    row_scale: tl.tensor  # [samples] or None


@triton.jit(do_not_specialize=["seed_ptr", "seed", "rows", "cols", "rows_per_sample", "keep_threshold"])
def dropout_add_kernel(
    inputs: Inputs,
    z_ptr,  # [rows, cols]
    scales: Scales,
    seed_ptr,  # int64 scalar, added to `seed`; None where nothing is drawn
    seed: tl.int64,
    rows,
    cols,  # in vectors
    rows_per_sample,
    keep_threshold: tl.int64,
    scale: tl.float64,
    BITS: tl.constexpr,
    SHARED: tl.constexpr,
    TILE: tl.constexpr,
):
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(z_ptr.dtype.element_ty)
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    cols = cols.to(tl.int64) * TILE.vector  # one row may be all of a tensor
    drop = load_seed(seed_ptr, seed), rows_per_sample, keep_threshold, scale
    tile, col_blocks = tl.program_id(0), tl.cdiv(cols, BLOCK_COLS).to(tl.int32)
    row, first_col, col, base, offsets, mask = elements_of_rows(
        tile // col_blocks, tile % col_blocks, rows, cols, BLOCK_ROWS, BLOCK_COLS
    )
    keep, factor = decisions(
        drop, scales.row_scale, row, row < rows, cols, first_col, COMPUTE_DTYPE, BITS, SHARED, BLOCK_COLS
    )
    z = load_z(inputs, scales.layer_scale, base, offsets, mask, col, cols, keep, factor, COMPUTE_DTYPE)
    store(z_ptr + base, offsets, z, mask)


@triton.jit(do_not_specialize=["seed_ptr", "seed", "rows", "cols", "rows_per_sample", "keep_threshold"])
def dropout_add_backward_kernel(
    dz_ptr,  # [rows, cols]; so are x, and dx or None
    x_ptr,
    dx_ptr,
    scales: Scales,
    dlayer_scale_partial_ptr,  # [programs, cols]
    seed_ptr,  # int64 scalar, added to `seed`; None where nothing is drawn
    seed: tl.int64,
    rows,
    cols,  # in vectors
    rows_per_sample,
    keep_threshold: tl.int64,
    scale: tl.float64,
    BITS: tl.constexpr,
    SHARED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Every tile of rows of a block of columns in turn."""
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(dz_ptr.dtype.element_ty)
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    cols = cols.to(tl.int64) * TILE.vector  # one row may be all of a tensor
    drop = load_seed(seed_ptr, seed), rows_per_sample, keep_threshold, scale
    col = tl.program_id(0).to(tl.int64) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    layer_scale = load_parameter(scales.layer_scale, col, cols, COMPUTE_DTYPE)
    dlayer_scale = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    for tile in range(tl.program_id(1), tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(1)):
        row, first_col, col, base, offsets, mask = elements_of_rows(
            tile, tl.program_id(0), rows, cols, BLOCK_ROWS, BLOCK_COLS
        )
        keep, factor = decisions(
            drop, scales.row_scale, row, row < rows, cols, first_col, COMPUTE_DTYPE, BITS, SHARED, BLOCK_COLS
        )
        dz = load(dz_ptr + base, offsets, mask, COMPUTE_DTYPE)
        x = load(x_ptr + base, offsets, mask, COMPUTE_DTYPE)
        dlayer_scale += dz * branch(x, keep, factor)
        if dx_ptr is not None:
            dx = branch(dz, keep, factor) * layer_scale
            store(dx_ptr + base, offsets, dx, mask)

    store_partial(dlayer_scale_partial_ptr, dlayer_scale, col, cols)


def arguments(
    rows: int, cols: int, samples: int, drop: Drop, tile: RowTile
) -> tuple[tuple[float, ...], dict[str, Any]]:
    """Numbers and constants of either kernel."""
    constants = dict(BITS=drop.bits, SHARED=drop.shared, TILE=tile, num_warps=tile.num_warps)
    return (rows, cols // tile.vector, *drop.numbers(rows, samples)), constants


@launch.kept
def forward_launch(rows: int, cols: int, samples: int, drop: Drop, device: torch.device) -> launch.Launch:
    tile = tiling.elements.elements_tile(rows, cols)
    numbers, constants = arguments(rows, cols, samples, drop, tile)
    blocks = triton.cdiv(rows, tile.rows) * triton.cdiv(cols, tile.cols)
    return launch.Launch(dropout_add_kernel, (blocks,), device, *numbers, **constants)


@launch.kept
def backward_launch(rows: int, cols: int, samples: int, drop: Drop, device: torch.device) -> launch.Launch:
    tile = tiling.elements.elements_tile(rows, cols)
    col_blocks, tiles = triton.cdiv(cols, tile.cols), triton.cdiv(rows, tile.rows)
    programs = tiling.partials.elements_programs(tiles, col_blocks, device)
    numbers, constants = arguments(rows, cols, samples, drop, tile)
    return launch.Launch(dropout_add_backward_kernel, (col_blocks, programs), device, *numbers, **constants)


def rows_and_cols(
    x: Tensor, samples: int, layer_scale: Tensor | None, cols: int | None = None
) -> tuple[int, int]:
    """x as [rows, cols], rows as long as they can be: of all of a layer scale, of no more than a sample."""
    if cols is None:
        cols = x.numel() // samples if layer_scale is None else layer_scale.numel()
    return x.numel() // cols, cols


def dropout_add(
    x: Tensor,
    residual: Tensor | None,
    layer_scale: Tensor | None,
    row_scale: Tensor | None,
    drop: Drop,
    seed: int | Tensor | None,
    out_dtype: torch.dtype,
    cols: int | None = None,
) -> Tensor:
    """z in `out_dtype`, or the branch alone where residual is None.

    layer_scale: of the last elements. row_scale: of the first indices. cols: of a row, where that is said by
    the caller. x and residual are contiguous or, where only samples matter, in any one order that has the
    samples first.
    """
    scales = contiguous(layer_scale, row_scale)
    z = torch.empty_like(x, dtype=out_dtype)
    samples = drop.samples_of(x, row_scale)
    seed_ptr, seed = seed_arguments(seed, x.device)
    call = forward_launch(*rows_and_cols(x, samples, layer_scale, cols), samples, drop, x.device)
    launch.launch(call, x, residual, z, *scales, seed_ptr, numbers=(seed,))
    return z


def dropout_add_backward(
    dz: Tensor,
    x: Tensor,
    layer_scale: Tensor,
    row_scale: Tensor | None,
    drop: Drop,
    seed: int | Tensor | None,
    want_dx: bool,
) -> tuple[Tensor | None, Tensor]:
    """dx in x's dtype, or None, and dlayer_scale (flat)."""
    dz, x = contiguous(dz, x)
    scales = contiguous(layer_scale, row_scale)
    dx = torch.empty_like(x) if want_dx else None
    samples = drop.samples_of(x, row_scale)
    rows, cols = rows_and_cols(x, samples, layer_scale)
    call = backward_launch(rows, cols, samples, drop, x.device)
    partial = torch.empty((call.grid[1], cols), dtype=dtypes.compute_dtype(dz.dtype), device=x.device)
    seed_ptr, seed = seed_arguments(seed, x.device)
    launch.launch(call, dz, x, dx, *scales, partial, seed_ptr, numbers=(seed,))
    dlayer_scale, _ = column_sums((partial, None), (True, False), layer_scale.dtype)
    return dx, dlayer_scale
