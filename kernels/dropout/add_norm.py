"""Dropout, row scale and layer scale of x [rows, cols], added to a residual, and LayerNorm of the sum's rows.

    z = residual + layer_scale row_scale x / keep       where kept, else residual (`dropout_add`)
    y = x_hat weight + bias                             x_hat = (z - mean) rstd (`layer_norm`, `rms_norm`)

    dz = (wdy - x_hat c1 - c2) rstd + the gradient that z has from elsewhere
    dresidual = dz                                      dx = layer_scale row_scale dz / keep, or 0
    dlayer_scale = sum over rows of dz row_scale x / keep

z is rounded to its dtype before it is normalised, and is what is kept for the backward, which draws the mask
again. Bytes in 16 bits: x, residual, z and y, 8; dy, z, dx and dresidual, 8, and 2 more for a gradient that z
has from elsewhere, and for x where there is a layer scale. dx and dresidual are one where nothing is
dropped or scaled. Rows are held, or z is read again by `layer_norm`.
"""

import torch
import triton
import triton.language as tl

from normreg.kernels import dtypes, launch, layer_norm, tiling
from normreg.kernels.device.branch import branch, decisions, samples_of
from normreg.kernels.device.random import load_seed, seed_arguments
from normreg.kernels.device.rows import Rows, load_normalized, load_parameter, row_strides, row_sums, row_tile
from normreg.kernels.device.statistics import moments, rstd_of
from normreg.kernels.dropout.add import dropout_add
from normreg.kernels.dropout.add_norm_tiles import dropout_add_norm_forward_parts_kernel


@triton.jit
def load_z(
    x_ptr, residual_ptr, layer_scale_ptr, offsets, mask, col, cols, keep, factor,
    DTYPE: tl.constexpr, Z_DTYPE: tl.constexpr,
):  # fmt: skip
    """z [rows, cols], rounded to Z_DTYPE."""
    z = branch(tl.load(x_ptr + offsets, mask=mask, other=0.0).to(DTYPE), keep, factor)
    if layer_scale_ptr is not None:
        z *= load_parameter(layer_scale_ptr, col, cols, DTYPE)
    if residual_ptr is not None:
        z += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(DTYPE)
    return z.to(Z_DTYPE)


@triton.jit(do_not_specialize=["seed_ptr", "seed", "rows", "cols", "rows_per_sample", "keep_threshold"])
def dropout_add_norm_forward_kernel(
    x_ptr, residual_ptr, z_ptr, y_ptr,        # [rows, cols]; residual and z or None
    layer_scale_ptr, row_scale_ptr,           # [cols], [samples]; or None
    weight_ptr, bias_ptr,                     # [cols] or None
    mean_ptr, rstd_ptr,                       # [rows] or None
    seed_ptr,                                 # int64 scalar, added to `seed`; None where nothing is drawn
    seed: tl.int64,
    rows, cols,                               # cols in vectors
    rows_per_sample, keep_threshold: tl.int64, scale: tl.float64, eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, Z_DTYPE: tl.constexpr, VECTOR: tl.constexpr,
    CENTERED: tl.constexpr, BITS: tl.constexpr, SHARED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    rows, cols, stride_row, _ = row_strides(rows, cols, VECTOR, False)
    seed = load_seed(seed_ptr, seed)
    first_row, left, base = row_tile(tl.program_id(0), rows, cols, stride_row, False, BLOCK_ROWS)
    row = tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_COLS)
    row_mask = row < left
    mask = row_mask[:, None] & (col < cols)[None, :]
    offsets = base + row[:, None] * stride_row + col[None, :]
    keep, factor = decisions(
        seed, row_scale_ptr, first_row + row, row_mask, rows_per_sample, cols, 0, keep_threshold,
        scale, COMPUTE_DTYPE, BITS, SHARED, BLOCK_COLS,
    )  # fmt: skip
    z = load_z(
        x_ptr, residual_ptr, layer_scale_ptr, offsets, mask, col, cols, keep, factor,
        COMPUTE_DTYPE, Z_DTYPE,
    )  # fmt: skip
    if z_ptr is not None:
        tl.store(z_ptr + offsets, z, mask=mask)

    z = z.to(COMPUTE_DTYPE)
    if CENTERED:
        z -= tl.sum(tl.where((col == 0)[None, :], z, 0.0), 1)[:, None]
        mean, m2 = moments(z, mask, cols, 1)
        z -= mean[:, None]
    else:
        m2 = tl.sum(z * z, 1)
    rstd = rstd_of(m2 / cols, eps)
    y = z * rstd[:, None]
    if weight_ptr is not None:
        y *= load_parameter(weight_ptr, col, cols, COMPUTE_DTYPE)
    if bias_ptr is not None:
        y += load_parameter(bias_ptr, col, cols, COMPUTE_DTYPE)

    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)
    if mean_ptr is not None:
        tl.store(mean_ptr + first_row + row, mean, mask=row_mask)
    if rstd_ptr is not None:
        tl.store(rstd_ptr + first_row + row, rstd, mask=row_mask)


@triton.jit(
    do_not_specialize=["seed_ptr", "seed", "rows", "cols", "rows_per_sample", "tiles", "keep_threshold"]
)
def dropout_add_norm_backward_kernel(
    dy_ptr, z_ptr, dz_ptr,                    # [rows, cols]; dz, the gradient from elsewhere, or None
    x_ptr, dx_ptr, dresidual_ptr,             # [rows, cols] or None; x where dlayer_scale is wanted
    layer_scale_ptr, row_scale_ptr,           # [cols], [samples]; or None
    weight_ptr,                               # [cols] or None
    mean_ptr, rstd_ptr,                       # [rows]; mean None where rows are not centred
    c1_ptr, c2_ptr,                           # [rows], or None where BLOCK_COLS covers the row
    dweight_partial_ptr, dbias_partial_ptr, dlayer_scale_partial_ptr,   # [programs, cols] or None
    seed_ptr,                                 # int64 scalar, added to `seed`; None where nothing is drawn
    seed: tl.int64,
    rows, cols,                               # cols in vectors
    rows_per_sample, keep_threshold: tl.int64, scale: tl.float64, tiles,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr, BITS: tl.constexpr, SHARED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Every tile of rows of a block of columns in turn."""
    rows, cols, stride_row, _ = row_strides(rows, cols, VECTOR, False)
    seed = load_seed(seed_ptr, seed)
    row = tl.arange(0, BLOCK_ROWS)
    first_col = tl.program_id(0) * BLOCK_COLS
    col = first_col + tl.arange(0, BLOCK_COLS)
    dweight = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    dbias = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    dlayer_scale = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    if weight_ptr is not None:
        weight = load_parameter(weight_ptr, col, cols, COMPUTE_DTYPE)

    for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
        first_row, left, base = row_tile(tile, rows, cols, stride_row, False, BLOCK_ROWS)
        row_mask = row < left
        mask = row_mask[:, None] & (col < cols)[None, :]
        offsets = base + row[:, None] * stride_row + col[None, :]
        x_hat, rstd = load_normalized(
            z_ptr,
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
        wdy = dy
        if weight_ptr is not None:
            wdy = dy * weight
        c1, c2 = row_sums(x_hat, wdy, cols, c1_ptr, c2_ptr, first_row + row, row_mask, mean_ptr)
        dz = (wdy - x_hat * c1 - c2) * rstd
        if dz_ptr is not None:
            dz += tl.load(dz_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + offsets, dz.to(dresidual_ptr.dtype.element_ty), mask=mask)

        keep, factor = decisions(
            seed, row_scale_ptr, first_row + row, row_mask, rows_per_sample, cols, first_col,
            keep_threshold, scale, COMPUTE_DTYPE, BITS, SHARED, BLOCK_COLS,
        )  # fmt: skip
        if dlayer_scale_partial_ptr is not None:
            x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
            dlayer_scale += dz * branch(x, keep, factor)
        if dx_ptr is not None:
            dx = branch(dz, keep, factor)
            if layer_scale_ptr is not None:
                dx *= load_parameter(layer_scale_ptr, col, cols, COMPUTE_DTYPE)
            tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)

    partial = tl.program_id(1).to(tl.int64) * cols + col
    if dweight_partial_ptr is not None:
        tl.store(dweight_partial_ptr + partial, tl.sum(dweight, 0), mask=col < cols)
    if dbias_partial_ptr is not None:
        tl.store(dbias_partial_ptr + partial, tl.sum(dbias, 0), mask=col < cols)
    if dlayer_scale_partial_ptr is not None:
        tl.store(dlayer_scale_partial_ptr + partial, tl.sum(dlayer_scale, 0), mask=col < cols)


def norm_constants(rule, rows, samples, dtype, tile):
    """rows, cols in vectors and the rule's scalars as the kernels take them, and their constants."""
    sizes, constants = rows.sizes()
    del constants["CHANNELS_FIRST"]
    scalars, decided = rule.arguments(rows.rows, samples)
    constants |= dict(COMPUTE_DTYPE=dtypes.triton_dtype(dtypes.compute_dtype(dtype)), **decided)
    constants |= dict(num_warps=tile.num_warps, **tile.constants())
    return (*sizes, *scalars), constants


@launch.planned
def forward_launch(rows, samples, dtype, rule, eps, centered, device):
    """None where a row is too wide to be held."""
    tile = tiling.rows.dropout_add_norm_forward_tile(rows, dtype)
    if not tile.holds(rows):
        return None
    scalars, constants = norm_constants(rule, rows, samples, dtype, tile)
    kernel = dropout_add_norm_forward_kernel
    if tile.parts > 1:
        kernel = dropout_add_norm_forward_parts_kernel
        constants |= dict(PACKED=tile.packed)
    return launch.Launch(
        kernel, (rows.tiles(tile),), device, *scalars, eps,
        Z_DTYPE=dtypes.triton_dtype(dtype), CENTERED=centered, **constants,
    )  # fmt: skip


@launch.planned
def backward_launches(rows, samples, dtype, rule, device):
    tile = tiling.rows.dropout_add_norm_backward_tile(rows, dtypes.compute_dtype(dtype))
    sums = None
    if not tile.holds(rows):
        sums = layer_norm.sums_launch(rows, dtype, device)
        tile = tiling.rows.dropout_add_norm_backward_parameters_tile()
    scalars, constants = norm_constants(rule, rows, samples, dtype, tile)
    col_blocks, tiles = triton.cdiv(rows.cols, tile.cols), rows.tiles(tile)
    programs = tiling.rows.layer_norm_backward_programs(tile, tiles, col_blocks, device)
    main = launch.Launch(
        dropout_add_norm_backward_kernel, (col_blocks, programs), device, *scalars, tiles, **constants
    )
    return layer_norm.Backward(sums, main)


def dropout_add_norm_forward(
    x, residual, weight, bias, layer_scale, row_scale, seed, rule, cols, eps, z_dtype, out_dtype, centered,
    save_z, save_statistics,
):  # fmt: skip
    """y in `out_dtype`; z in `z_dtype`, mean and rstd, None where not to be saved. All are contiguous."""
    rows = Rows(1, x.numel() // cols, cols, False)
    plan = forward_launch(rows, samples_of(x, rule, row_scale), z_dtype, rule, eps, centered, x.device)
    if plan is None:
        z = dropout_add(x, residual, layer_scale, row_scale, rule, seed, z_dtype, cols)
        y, *statistics = layer_norm.layer_norm_forward(
            z, weight, bias, cols, eps, out_dtype, save_statistics, centered
        )
        return y, z, *statistics
    y = torch.empty_like(x, dtype=out_dtype)
    z = torch.empty_like(x, dtype=z_dtype) if save_z else None
    mean = rstd = None
    if save_statistics:
        rstd = torch.empty(rows.rows, dtype=dtypes.compute_dtype(z_dtype), device=x.device)
        mean = torch.empty_like(rstd) if centered else None
    seed_ptr, seed = seed_arguments(seed, x.device)
    launch.launch(
        plan, x, residual, z, y, layer_scale, row_scale, weight, bias, mean, rstd, seed_ptr, numbers=(seed,)
    )
    return y, z, mean, rstd


def dropout_add_norm_backward(
    dy, dz, z, x, weight, layer_scale, row_scale, mean, rstd, seed, rule, cols, dtypes, wanted
):
    """The wanted ones of dx, dresidual, dweight, dbias and dlayer_scale (flat), None for the others.

    dz: the gradient that z has from elsewhere, or None. x: where dlayer_scale is wanted, else None.
    dtypes: of dx, dresidual, and of dweight and dbias.
    """
    dx_dtype, dresidual_dtype, parameter_dtype = dtypes
    want_dx, want_dresidual, *want_parameters, want_dlayer_scale = wanted
    rows, samples = Rows(1, z.numel() // cols, cols, False), samples_of(z, rule, row_scale)
    launches = backward_launches(rows, samples, z.dtype, rule, z.device)
    dx = torch.empty_like(z, dtype=dx_dtype) if want_dx else None
    dresidual = torch.empty_like(z, dtype=dresidual_dtype) if want_dresidual else None
    partials = [
        torch.empty((launches.main.grid[1], cols), dtype=rstd.dtype, device=z.device) if want else None
        for want in (*want_parameters, want_dlayer_scale)
    ]
    row_sums = layer_norm.row_sums_of(launches.sums, dy, z, weight, mean, rstd)
    seed_ptr, seed = seed_arguments(seed, z.device)
    launch.launch(
        launches.main, dy, z, dz, x, dx, dresidual, layer_scale, row_scale, weight, mean, rstd, *row_sums,
        *partials, seed_ptr, numbers=(seed,),
    )  # fmt: skip
    gradients = layer_norm.finish(partials[:2], want_parameters, parameter_dtype)
    dlayer_scale = None
    if want_dlayer_scale:
        dlayer_scale, _ = layer_norm.finish((partials[2], None), (True, False), layer_scale.dtype)
    return dx, dresidual, *gradients, dlayer_scale
