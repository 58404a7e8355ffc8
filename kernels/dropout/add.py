"""Dropout, row scale and layer scale of x [rows, cols], added to a residual.

    z = residual + layer_scale row_scale x / keep       where kept, else residual

    dresidual = dz                     dx = layer_scale row_scale dz / keep     where kept, else 0
                                       dlayer_scale = sum over rows of dz row_scale x / keep

The decisions are those of `branch`, a function of the seed and the logical index. dx is the branch of dz, so
without a layer scale the backward is the forward without a residual. Bytes: x, residual and z, 6 in 16 bits;
dz and dx, 4, and x for dlayer_scale. dresidual is dz itself.
"""

import torch
import triton
import triton.language as tl

from normreg.kernels import dtypes, launch, tiling
from normreg.kernels.device.branch import branch, decisions, samples_of
from normreg.kernels.device.random import load_seed, seed_arguments
from normreg.kernels.device.rows import elements_of_rows, load_parameter
from normreg.kernels.layer_norm import finish


@triton.jit(do_not_specialize=["seed_ptr", "seed", "rows", "cols", "rows_per_sample", "keep_threshold"])
def dropout_add_kernel(
    x_ptr, residual_ptr, z_ptr,               # [rows, cols]; residual or None
    layer_scale_ptr, row_scale_ptr,           # [cols], [samples]; or None
    seed_ptr,                                 # int64 scalar, added to `seed`; None where nothing is drawn
    seed: tl.int64,
    rows, cols,                               # cols in vectors
    rows_per_sample, keep_threshold: tl.int64, scale: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr, BITS: tl.constexpr, SHARED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    cols = cols.to(tl.int64) * VECTOR  # one row may be all of a tensor
    seed = load_seed(seed_ptr, seed)
    tile, col_blocks = tl.program_id(0), tl.cdiv(cols, BLOCK_COLS).to(tl.int32)
    row, first_col, col, base, offsets, mask = elements_of_rows(
        tile // col_blocks, tile % col_blocks, rows, cols, BLOCK_ROWS, BLOCK_COLS
    )
    keep, factor = decisions(
        seed, row_scale_ptr, row, row < rows, rows_per_sample, cols, first_col, keep_threshold,
        scale, COMPUTE_DTYPE, BITS, SHARED, BLOCK_COLS,
    )  # fmt: skip
    x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    z = branch(x, keep, factor)
    if layer_scale_ptr is not None:
        z *= load_parameter(layer_scale_ptr, col, cols, COMPUTE_DTYPE)
    if residual_ptr is not None:
        z += tl.load(residual_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    tl.store(z_ptr + base + offsets, z.to(z_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["seed_ptr", "seed", "rows", "cols", "rows_per_sample", "keep_threshold"])
def dropout_add_backward_kernel(
    dz_ptr, x_ptr, dx_ptr,                    # [rows, cols]; dx or None
    layer_scale_ptr, row_scale_ptr,           # [cols]; [samples] or None
    dlayer_scale_partial_ptr,                 # [programs, cols]
    seed_ptr,                                 # int64 scalar, added to `seed`; None where nothing is drawn
    seed: tl.int64,
    rows, cols,                               # cols in vectors
    rows_per_sample, keep_threshold: tl.int64, scale: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr, BITS: tl.constexpr, SHARED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Every tile of rows of a block of columns in turn."""
    cols = cols.to(tl.int64) * VECTOR  # one row may be all of a tensor
    seed = load_seed(seed_ptr, seed)
    col = tl.program_id(0).to(tl.int64) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    layer_scale = load_parameter(layer_scale_ptr, col, cols, COMPUTE_DTYPE)
    dlayer_scale = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    for tile in range(tl.program_id(1), tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(1)):
        row, first_col, col, base, offsets, mask = elements_of_rows(
            tile, tl.program_id(0), rows, cols, BLOCK_ROWS, BLOCK_COLS
        )
        keep, factor = decisions(
            seed, row_scale_ptr, row, row < rows, rows_per_sample, cols, first_col, keep_threshold,
            scale, COMPUTE_DTYPE, BITS, SHARED, BLOCK_COLS,
        )  # fmt: skip
        dz = tl.load(dz_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        dlayer_scale += dz * branch(x, keep, factor)
        if dx_ptr is not None:
            dx = branch(dz, keep, factor) * layer_scale
            tl.store(dx_ptr + base + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)

    partial = tl.program_id(1).to(tl.int64) * cols + col
    tl.store(dlayer_scale_partial_ptr + partial, tl.sum(dlayer_scale, 0), mask=col < cols)


def element_constants(rule, rows, cols, samples, compute_dtype, tile):
    """rows, cols in vectors and the rule's scalars as a kernel takes them, and its constants."""
    vector = tiling.hardware.vector(cols)
    scalars, constants = rule.arguments(rows, samples)
    constants |= dict(COMPUTE_DTYPE=dtypes.triton_dtype(compute_dtype), VECTOR=vector)
    constants |= dict(BLOCK_ROWS=tile.rows, BLOCK_COLS=tile.cols, num_warps=tile.num_warps)
    return (rows, cols // vector, *scalars), constants


@launch.planned
def forward_launch(rows, cols, samples, compute_dtype, rule, device):
    tile = tiling.elements.elements_tile(rows, cols)
    scalars, constants = element_constants(rule, rows, cols, samples, compute_dtype, tile)
    blocks = triton.cdiv(rows, tile.rows) * triton.cdiv(cols, tile.cols)
    return launch.Launch(dropout_add_kernel, (blocks,), device, *scalars, **constants)


@launch.planned
def backward_launch(rows, cols, samples, compute_dtype, rule, device):
    tile = tiling.elements.elements_tile(rows, cols)
    scalars, constants = element_constants(rule, rows, cols, samples, compute_dtype, tile)
    col_blocks = triton.cdiv(cols, tile.cols)
    tiles = triton.cdiv(rows, tile.rows)
    programs = tiling.rows.layer_norm_backward_programs(tile, tiles, col_blocks, device)
    return launch.Launch(dropout_add_backward_kernel, (col_blocks, programs), device, *scalars, **constants)


def rows_and_cols(x, samples, layer_scale, cols=None):
    """x as [rows, cols], rows as long as they can be: of all of a layer scale, of no more than a sample."""
    if cols is None:
        cols = x.numel() // samples if layer_scale is None else layer_scale.numel()
    return x.numel() // cols, cols


def dropout_add(x, residual, layer_scale, row_scale, rule, seed, out_dtype, cols=None):
    """z in `out_dtype`, or the branch alone where residual is None.

    layer_scale: flat, of the last elements. row_scale: flat, of the first indices. cols: of a row, where that
    is said by the caller. Tensors are contiguous or, where only samples matter, in any one order that has the
    samples first.
    """
    z = torch.empty_like(x, dtype=out_dtype)
    samples = samples_of(x, rule, row_scale)
    sizes = *rows_and_cols(x, samples, layer_scale, cols), samples
    seed_ptr, seed = seed_arguments(seed, x.device)
    plan = forward_launch(*sizes, dtypes.compute_dtype(out_dtype), rule, x.device)
    launch.launch(plan, x, residual, z, layer_scale, row_scale, seed_ptr, numbers=(seed,))
    return z


def dropout_add_backward(dz, x, layer_scale, row_scale, rule, seed, want_dx):
    """dx in x's dtype, or None, and dlayer_scale."""
    dx = torch.empty_like(x) if want_dx else None
    samples = samples_of(x, rule, row_scale)
    rows, cols = rows_and_cols(x, samples, layer_scale)
    compute_dtype = dtypes.compute_dtype(dz.dtype)
    plan = backward_launch(rows, cols, samples, compute_dtype, rule, x.device)
    partial = torch.empty((plan.grid[1], cols), dtype=compute_dtype, device=x.device)
    seed_ptr, seed = seed_arguments(seed, x.device)
    launch.launch(plan, dz, x, dx, layer_scale, row_scale, partial, seed_ptr, numbers=(seed,))
    dlayer_scale, _ = finish((partial, None), (True, False), layer_scale.dtype)
    return dx, dlayer_scale
