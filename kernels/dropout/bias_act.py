"""Bias, activation and dropout of x [rows, cols]: the middle of a transformer's feed-forward block.

    z = x + bias                 y = act(z) / keep              where kept, else 0

    dx = dz = act'(z) dy / keep  where kept, else 0             dbias = sum over rows of dx

The activations are those of `activations`, the decisions those of `branch`. Kept for the backward are x and
bias: it computes z once more and draws the mask again. Bytes in 16 bits: x and y, 4; dy, x and dx, 6.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from normreg.kernels import dtypes, launch, tiling
from normreg.kernels.column_sums import column_sums
from normreg.kernels.device.activations import activate, activation_backward
from normreg.kernels.device.branch import branch, decisions
from normreg.kernels.device.random import load_seed
from normreg.kernels.device.rows import elements_of_rows, load, load_parameter, store, store_partial
from normreg.kernels.device.statistics import compute_dtype
from normreg.kernels.dropout.drop import Drop, seed_arguments
from normreg.kernels.memory_format import contiguous
from normreg.kernels.tiling.rows import RowTile


@triton.jit(do_not_specialize=["seed_ptr", "seed", "rows", "cols", "keep_threshold"])
def bias_act_dropout_forward_kernel(
    x_ptr,  # [rows, cols]; so is y
    y_ptr,
    bias_ptr,  # [cols] or None
    seed_ptr,  # int64 scalar, added to `seed`; None where nothing is drawn
    seed: tl.int64,
    rows,
    cols,  # in vectors
    keep_threshold: tl.int64,
    scale: tl.float64,
    negative_slope: tl.float64,
    BITS: tl.constexpr,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
):
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty)
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    cols = cols.to(tl.int64) * TILE.vector  # one row may be all of a tensor
    drop = load_seed(seed_ptr, seed), 1, keep_threshold, scale
    tile, col_blocks = tl.program_id(0), tl.cdiv(cols, BLOCK_COLS).to(tl.int32)
    row, first_col, col, base, offsets, mask = elements_of_rows(
        tile // col_blocks, tile % col_blocks, rows, cols, BLOCK_ROWS, BLOCK_COLS
    )
    keep, factor = decisions(
        drop, None, row, row < rows, cols, first_col, COMPUTE_DTYPE, BITS, False, BLOCK_COLS
    )
    z = load_with_bias(x_ptr + base, bias_ptr, offsets, mask, col, cols, COMPUTE_DTYPE)
    z = tl.where(keep, z, 0.0)  # before, not behind: LLVM would round, then choose, one element at a time
    y = activate(z, negative_slope, ACT, x_ptr.dtype.element_ty) * factor
    store(y_ptr + base, offsets, y, mask)


@triton.jit
def load_with_bias(x_ptr, bias_ptr, offsets, mask, col, cols, COMPUTE_DTYPE: tl.constexpr):
    """z = x + bias"""
    z = load(x_ptr, offsets, mask, COMPUTE_DTYPE)
    if bias_ptr is not None:
        z += load_parameter(bias_ptr, col, cols, COMPUTE_DTYPE)
    return z


@triton.jit(do_not_specialize=["seed_ptr", "seed", "rows", "cols", "keep_threshold"])
def bias_act_dropout_backward_kernel(
    dy_ptr,  # [rows, cols]; so are x, and dx or None
    x_ptr,
    dx_ptr,
    bias_ptr,  # [cols] or None
    dbias_partial_ptr,  # [programs, cols] or None
    seed_ptr,  # int64 scalar, added to `seed`; None where nothing is drawn
    seed: tl.int64,
    rows,
    cols,  # in vectors
    keep_threshold: tl.int64,
    scale: tl.float64,
    negative_slope: tl.float64,
    BITS: tl.constexpr,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
):
    """Every tile of rows of a block of columns in turn."""
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty)
    BLOCK_ROWS: tl.constexpr = TILE.rows
    BLOCK_COLS: tl.constexpr = TILE.cols
    cols = cols.to(tl.int64) * TILE.vector  # one row may be all of a tensor
    drop = load_seed(seed_ptr, seed), 1, keep_threshold, scale
    dbias = tl.zeros([BLOCK_ROWS, BLOCK_COLS], COMPUTE_DTYPE)
    for tile in range(tl.program_id(1), tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(1)):
        row, first_col, col, base, offsets, mask = elements_of_rows(
            tile, tl.program_id(0), rows, cols, BLOCK_ROWS, BLOCK_COLS
        )
        keep, factor = decisions(
            drop, None, row, row < rows, cols, first_col, COMPUTE_DTYPE, BITS, False, BLOCK_COLS
        )
        z = load_with_bias(x_ptr + base, bias_ptr, offsets, mask, col, cols, COMPUTE_DTYPE)
        dy = load(dy_ptr + base, offsets, mask, COMPUTE_DTYPE)
        dx = branch(dy, keep, factor)
        dx = activation_backward(dx, z, negative_slope, ACT, x_ptr.dtype.element_ty)
        dbias += dx
        if dx_ptr is not None:
            store(dx_ptr + base, offsets, dx, mask)

    if dbias_partial_ptr is not None:
        col = tl.program_id(0).to(tl.int64) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
        store_partial(dbias_partial_ptr, dbias, col, cols)


def arguments(
    rows: int, cols: int, drop: Drop, act: str | None, negative_slope: float, tile: RowTile
) -> tuple[tuple[float, ...], dict[str, Any]]:
    """Numbers and constants of either kernel."""
    _, *decided = drop.numbers(rows, 1)
    constants = dict(BITS=drop.bits, ACT=act, TILE=tile, num_warps=tile.num_warps)
    return (rows, cols // tile.vector, *decided, negative_slope), constants


@launch.kept
def forward_launch(
    rows: int, cols: int, drop: Drop, act: str | None, negative_slope: float, device: torch.device
) -> launch.Launch:
    tile = tiling.elements.bias_act_forward_tile(rows, cols)
    numbers, constants = arguments(rows, cols, drop, act, negative_slope, tile)
    blocks = triton.cdiv(rows, tile.rows) * triton.cdiv(cols, tile.cols)
    return launch.Launch(bias_act_dropout_forward_kernel, (blocks,), device, *numbers, **constants)


@launch.kept
def backward_launch(
    rows: int,
    cols: int,
    drop: Drop,
    act: str | None,
    negative_slope: float,
    want_dbias: bool,
    device: torch.device,
) -> launch.Launch:
    tile = tiling.elements.bias_act_backward_tile(rows, cols, drop.bits)
    col_blocks, tiles = triton.cdiv(cols, tile.cols), triton.cdiv(rows, tile.rows)
    programs = min(tiles, launch.MOST_PROGRAMS[1])
    if want_dbias:
        programs = tiling.partials.elements_programs(tiles, col_blocks, device)
    numbers, constants = arguments(rows, cols, drop, act, negative_slope, tile)
    grid = col_blocks, programs
    return launch.Launch(bias_act_dropout_backward_kernel, grid, device, *numbers, **constants)


def rows_and_cols(x: Tensor, bias: Tensor | None) -> tuple[int, int]:
    """x as [rows, cols], one row where there is no bias."""
    return (1, x.numel()) if bias is None else (x.numel() // bias.numel(), bias.numel())


def bias_act_dropout_forward(
    x: Tensor,
    bias: Tensor | None,
    act: str | None,
    negative_slope: float,
    drop: Drop,
    seed: int | Tensor | None,
) -> Tensor:
    """y, contiguous."""
    x, bias = contiguous(x, bias)
    y = torch.empty_like(x)
    call = forward_launch(*rows_and_cols(x, bias), drop, act, negative_slope, x.device)
    seed_ptr, seed = seed_arguments(seed, x.device)
    launch.launch(call, x, y, bias, seed_ptr, numbers=(seed,))
    return y


def bias_act_dropout_backward(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    act: str | None,
    negative_slope: float,
    drop: Drop,
    seed: int | Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dbias, None where not wanted."""
    want_dx, want_dbias = wanted
    dy, x, bias = contiguous(dy, x, bias)
    rows, cols = rows_and_cols(x, bias)
    dx = torch.empty_like(x) if want_dx else None
    call = backward_launch(rows, cols, drop, act, negative_slope, want_dbias, x.device)
    partial = None
    if want_dbias:
        partial = torch.empty((call.grid[1], cols), dtype=dtypes.compute_dtype(x.dtype), device=x.device)
    seed_ptr, seed = seed_arguments(seed, x.device)
    launch.launch(call, dy, x, dx, bias, partial, seed_ptr, numbers=(seed,))
    if not want_dbias:
        return dx, None
    dbias, _ = column_sums((partial, None), (True, False), bias.dtype)
    return dx, dbias
