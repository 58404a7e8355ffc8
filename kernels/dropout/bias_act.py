"""Bias, activation and dropout of x [rows, cols]: the middle of a transformer's feed-forward block.

    z = x + bias                 y = act(z) / keep              where kept, else 0

    dx = dz = act'(z) dy / keep  where kept, else 0             dbias = sum over rows of dx

The activations are those of `activations`, the decisions those of `branch`. Kept for the backward are x and
bias: it computes z once more and draws the mask again. Bytes in 16 bits: x and y, 4; dy, x and dx, 6.
"""

import torch
import triton
import triton.language as tl

from normreg.kernels import dtypes, launch, tiling
from normreg.kernels.device.activations import activate, activation_backward
from normreg.kernels.device.branch import branch, decisions
from normreg.kernels.device.random import load_seed, seed_arguments
from normreg.kernels.device.rows import elements_of_rows, load_parameter
from normreg.kernels.dropout.add import element_constants
from normreg.kernels.layer_norm import finish


@triton.jit(do_not_specialize=["seed_ptr", "seed", "rows", "cols", "rows_per_sample", "keep_threshold"])
def bias_act_dropout_forward_kernel(
    x_ptr, y_ptr,                             # [rows, cols]
    bias_ptr,                                 # [cols] or None
    seed_ptr,                                 # int64 scalar, added to `seed`; None where nothing is drawn
    seed: tl.int64,
    rows, cols,                               # cols in vectors
    rows_per_sample, keep_threshold: tl.int64, scale: tl.float64,
    negative_slope: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr, BITS: tl.constexpr, SHARED: tl.constexpr,
    ACT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    cols = cols.to(tl.int64) * VECTOR  # one row may be all of a tensor
    seed = load_seed(seed_ptr, seed)
    tile, col_blocks = tl.program_id(0), tl.cdiv(cols, BLOCK_COLS).to(tl.int32)
    row, first_col, col, base, offsets, mask = elements_of_rows(
        tile // col_blocks, tile % col_blocks, rows, cols, BLOCK_ROWS, BLOCK_COLS
    )
    keep, factor = decisions(
        seed, None, row, row < rows, rows_per_sample, cols, first_col, keep_threshold,
        scale, COMPUTE_DTYPE, BITS, SHARED, BLOCK_COLS,
    )  # fmt: skip
    z = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    if bias_ptr is not None:
        z += load_parameter(bias_ptr, col, cols, COMPUTE_DTYPE)
    y = branch(activate(z, negative_slope, ACT), keep, factor)
    tl.store(y_ptr + base + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["seed_ptr", "seed", "rows", "cols", "rows_per_sample", "keep_threshold"])
def bias_act_dropout_backward_kernel(
    dy_ptr, x_ptr, dx_ptr,                    # [rows, cols]; dx or None
    bias_ptr,                                 # [cols] or None
    dbias_partial_ptr,                        # [programs, cols] or None
    seed_ptr,                                 # int64 scalar, added to `seed`; None where nothing is drawn
    seed: tl.int64,
    rows, cols,                               # cols in vectors
    rows_per_sample, keep_threshold: tl.int64, scale: tl.float64,
    negative_slope: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr, BITS: tl.constexpr, SHARED: tl.constexpr,
    ACT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Every tile of rows of a block of columns in turn."""
    cols = cols.to(tl.int64) * VECTOR  # one row may be all of a tensor
    seed = load_seed(seed_ptr, seed)
    dbias = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    for tile in range(tl.program_id(1), tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(1)):
        row, first_col, col, base, offsets, mask = elements_of_rows(
            tile, tl.program_id(0), rows, cols, BLOCK_ROWS, BLOCK_COLS
        )
        keep, factor = decisions(
            seed, None, row, row < rows, rows_per_sample, cols, first_col, keep_threshold,
            scale, COMPUTE_DTYPE, BITS, SHARED, BLOCK_COLS,
        )  # fmt: skip
        z = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        if bias_ptr is not None:
            z += load_parameter(bias_ptr, col, cols, COMPUTE_DTYPE)
        dy = tl.load(dy_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
        dx = activation_backward(branch(dy, keep, factor), z, negative_slope, ACT)
        dbias += dx
        if dx_ptr is not None:
            tl.store(dx_ptr + base + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)

    if dbias_partial_ptr is not None:
        col = tl.program_id(0).to(tl.int64) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
        partial = tl.program_id(1).to(tl.int64) * cols + col
        tl.store(dbias_partial_ptr + partial, tl.sum(dbias, 0), mask=col < cols)


@launch.planned
def forward_launch(rows, cols, dtype, rule, act, negative_slope, device):
    tile = tiling.elements.elements_tile(rows, cols)
    scalars, constants = element_constants(rule, rows, cols, 1, dtypes.compute_dtype(dtype), tile)
    blocks = triton.cdiv(rows, tile.rows) * triton.cdiv(cols, tile.cols)
    return launch.Launch(
        bias_act_dropout_forward_kernel, (blocks,), device, *scalars, negative_slope, ACT=act, **constants
    )


@launch.planned
def backward_launch(rows, cols, dtype, rule, act, negative_slope, sums, device):
    tile = tiling.elements.elements_tile(rows, cols)
    scalars, constants = element_constants(rule, rows, cols, 1, dtypes.compute_dtype(dtype), tile)
    col_blocks, tiles = triton.cdiv(cols, tile.cols), triton.cdiv(rows, tile.rows)
    programs = min(tiles, launch.MOST_PROGRAMS[1])
    if sums:
        programs = tiling.rows.layer_norm_backward_programs(tile, tiles, col_blocks, device)
    return launch.Launch(
        bias_act_dropout_backward_kernel, (col_blocks, programs), device, *scalars, negative_slope,
        ACT=act, **constants,
    )  # fmt: skip


def rows_and_cols(x, bias):
    return (1, x.numel()) if bias is None else (x.numel() // bias.numel(), bias.numel())


def bias_act_dropout_forward(x, bias, act, negative_slope, rule, seed):
    """y like x, which is contiguous."""
    y = torch.empty_like(x)
    plan = forward_launch(*rows_and_cols(x, bias), x.dtype, rule, act, negative_slope, x.device)
    seed_ptr, seed = seed_arguments(seed, x.device)
    launch.launch(plan, x, y, bias, seed_ptr, numbers=(seed,))
    return y


def bias_act_dropout_backward(dy, x, bias, act, negative_slope, rule, seed, wanted):
    """dx and dbias, None where not wanted."""
    want_dx, want_dbias = wanted
    rows, cols = rows_and_cols(x, bias)
    dx = torch.empty_like(x) if want_dx else None
    plan = backward_launch(rows, cols, x.dtype, rule, act, negative_slope, want_dbias, x.device)
    partial = None
    if want_dbias:
        dtype = dtypes.compute_dtype(x.dtype)
        partial = torch.empty((plan.grid[1], cols), dtype=dtype, device=x.device)
    seed_ptr, seed = seed_arguments(seed, x.device)
    launch.launch(plan, dy, x, dx, bias, partial, seed_ptr, numbers=(seed,))
    if not want_dbias:
        return dx, None
    return dx, finish((partial, None), (True, False), bias.dtype)[0]
