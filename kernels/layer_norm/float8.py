"""LayerNorm and RMSNorm whose result is float8_e4m3fn, with a scale, of rows that a program holds.

    y = x_hat weight + bias                  scale = max(max |y| / 448, 1 / (448 512)) of each row
    y8 = y (1 / scale), rounded once, to nearest even; beyond 448, the largest number of the dtype, +-448

x_hat is that of `layer_norm`, or of `rms_norm` where rows are not centred. y is not rounded to anything
before. Or scale is given, one or one of each row. NaN stays NaN, and is not what a scale is made of. There is
no gradient. Bytes in 16 bits: x and y8, 3 an element, and the scale, 4 a row.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from normreg.kernels import dtypes, launch, tiling
from normreg.kernels.device.rows import (
    Parameters,
    load,
    normalized,
    row_apart,
    row_strides,
    row_tile,
    rows_apart,
    scale_and_shift,
    store,
)
from normreg.kernels.device.statistics import compute_dtype
from normreg.kernels.device.tiles import (
    load_tiles,
    mean_of_tiles,
    normalized_tile,
    rstd_of_tiles,
    store_tile,
)
from normreg.kernels.memory_format import contiguous, in_rows
from normreg.kernels.tiling.rows import Rows

LARGEST = 448.0  # number of the dtype
LEAST_SCALE = 1.0 / (LARGEST * 512.0)  # of rows of zeros as well; vLLM's


class Quantised(NamedTuple):
    """Where a row's result goes, and the scale that it is divided by: stored, or given and None there."""

    y: tl.tensor  # [rows, cols]
    scale: tl.tensor  # [rows] or None
    given: tl.tensor  # [rows] or [1], or None


@triton.jit
def inverse_scale(most, results, row, row_mask, given_stride):
    """1 / scale of rows whose largest elements are `most`; stores the scale unless it is given."""
    if results.given is not None:
        scale = tl.load(results.given + row * given_stride, mask=row_mask, other=1.0)
    else:
        least = tl.full([], 1.0 / (448.0 * 512.0), tl.float32)
        scale = tl.maximum(tl.div_rn(most.to(tl.float32), 448.0), least)
        tl.store(results.scale + row, scale, mask=row_mask)
    return tl.div_rn(1.0, scale)


@triton.jit(do_not_specialize=["rows", "cols", "stride", "given_stride"])
def layer_norm_float8_kernel(
    x_ptr,  # [rows, cols]
    results: Quantised,
    parameters: Parameters,
    rows,
    cols,  # in vectors
    stride,  # from a row of x to the next, in vectors; None where they lie like y's
    given_stride,  # 1, or 0 of one scale for all rows
    eps: tl.float64,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
):
    COMPUTE_DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty)
    rows, cols, stride_row, _ = row_strides(rows, cols, TILE.vector, False)
    first_row, left, base = row_tile(tl.program_id(0), rows, cols, stride_row, False, TILE.rows)
    row, col = tl.arange(0, TILE.rows), tl.arange(0, TILE.cols)
    row_mask = row < left
    mask = row_mask[:, None] & (col < cols)[None, :]
    offsets = row[:, None] * stride_row + col[None, :]
    x_base, x_offsets = rows_apart(stride, first_row, row, col, base, offsets, TILE.vector)
    row = first_row + row
    x = load(x_ptr + x_base, x_offsets, mask, COMPUTE_DTYPE)

    x_hat = normalized(x, None, mask, row, row_mask, cols, eps, CENTERED, TILE)
    y = scale_and_shift(x_hat, parameters, col, cols)
    inverse = inverse_scale(tl.max(tl.abs(y), 1), results, row, row_mask, given_stride)
    store(results.y + base, offsets, y.to(tl.float32) * inverse[:, None], mask)


@triton.jit(do_not_specialize=["rows", "cols", "stride", "given_stride"])
def layer_norm_float8_tiles_kernel(
    x_ptr,  # [rows, cols]
    results: Quantised,
    parameters: Parameters,
    rows,
    cols,  # in vectors
    stride,  # from a row of x to the next, in vectors; None where they lie like y's
    given_stride,  # 1, or 0 of one scale for all rows
    eps: tl.float64,
    CENTERED: tl.constexpr,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    BLOCK_COLS: tl.constexpr = TILE.cols
    TILES: tl.constexpr = TILE.tiles
    cols *= TILE.vector
    row = tl.program_id(0).to(tl.int64)
    x = load_tiles(x_ptr + row_apart(stride, row, row * cols, TILE.vector), cols, TILE)

    mean = None
    if CENTERED:
        mean = mean_of_tiles(x, cols, DTYPE, TILE)
    rstd = rstd_of_tiles(x, mean, cols, eps, DTYPE, TILE)
    y = ()
    most = tl.zeros([BLOCK_COLS], tl.float32)
    for i in tl.static_range(TILES):
        tile = normalized_tile(x, mean, rstd, parameters, i, cols, DTYPE, TILE)
        most = tl.maximum(most, tl.abs(tile))
        y += (tile,)
    inverse = inverse_scale(tl.max(most, 0), results, row, True, given_stride)
    for i in tl.static_range(TILES):
        store_tile(results.y + row * cols, y[i] * inverse, i, cols, TILE)


@launch.kept
def float8_launch(
    shape: torch.Size,
    cols: int,
    dtype: torch.dtype,
    stride: int | None,
    given_stride: int,
    eps: float,
    centered: bool,
    device: torch.device,
) -> launch.Launch | None:
    """None where rows that are not contiguous are not held."""
    rows = Rows.of(shape, cols, stride=stride)
    tile = tiling.rows.layer_norm_float8_tile(rows, dtype)
    if stride is not None and not tile.covers(rows):
        return None
    tiling.rows.held(tile, rows)
    kernel = layer_norm_float8_tiles_kernel if tile.tiles > 1 else layer_norm_float8_kernel
    numbers = *rows.in_vectors(), rows.stride_in_vectors(), given_stride, eps
    constants = rows.constants(tile)
    return launch.Launch(kernel, (rows.tiles(tile),), device, *numbers, CENTERED=centered, **constants)


def scale_shape(shape: torch.Size, normalized_shape: Sequence[int]) -> tuple[int, ...]:
    """That of the scales of rows, with dimensions of 1 for those that a row has."""
    dims = len(normalized_shape)
    return (*shape[: len(shape) - dims], *[1] * dims)


def layer_norm_float8(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    normalized_shape: Sequence[int],
    centered: bool,
    eps: float,
) -> tuple[Tensor, Tensor | None]:
    """y8, contiguous, and the scale of each row in float32, None where it is given.

    scale: of one element, or of as many as there are rows.
    """
    y = torch.empty_like(x, dtype=dtypes.FLOAT8, memory_format=torch.contiguous_format)
    found = None
    if scale is None:
        found = torch.empty(scale_shape(x.shape, normalized_shape), dtype=torch.float32, device=x.device)
    cols = math.prod(normalized_shape)
    x = in_rows(x, cols)
    given_stride = int(scale is not None and scale.numel() > 1)
    options = given_stride, eps, centered, x.device
    stride = None if x.is_contiguous() else x.stride(0)
    main = float8_launch(y.shape, cols, x.dtype, stride, *options)
    if main is None:
        x = x.contiguous()
        main = float8_launch(y.shape, cols, x.dtype, None, *options)
    launch.launch(main, x, y, found, *contiguous(scale, weight, bias))
    return y, found
