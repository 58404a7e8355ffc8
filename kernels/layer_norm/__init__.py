"""Layer normalisation over the last `cols` elements of each row.

    mean = sum(x) / cols                     rstd = 1 / sqrt(sum((x - mean)^2) / cols + eps)
    x_hat = (x - mean) rstd                  y = x_hat weight + bias

    wdy = weight dy                          dweight = sum over rows of dy x_hat
    c1 = sum(x_hat wdy) / cols               dbias = sum over rows of dy
    c2 = sum(wdy) / cols                     dx = (wdy - x_hat c1 - c2) rstd

The mean is the sum of two numbers (`device.statistics`): float32 would round a mean of 10^6 by a thirtieth
of a standard deviation of 1. Rows that are not centred have no mean: that is RMSNorm (`rms_norm`). Saved of
each row, in one tensor `statistics`, are both parts of its mean and rstd, or rstd alone.

Rows that a program can hold are read once: several in a tile or one in a tile (`tile`), or one in several
tiles (`tiles`). Wider rows are read twice, in chunks (`chunks`): in the backward by a launch that finds c1
and c2, and by one over blocks of columns; or by one launch, where programs can hold the column sums (`wide`).
The backward holds rows of 16 bits that one tile could hold in float32, a few at a time (`held`). Sums over
rows are one a program, added up by `column_sums`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from normreg.kernels import dtypes, launch, tiling
from normreg.kernels.column_sums import column_sums
from normreg.kernels.layer_norm.chunks import (
    layer_norm_backward_sums_kernel,
    layer_norm_forward_chunks_kernel,
)
from normreg.kernels.layer_norm.held import layer_norm_backward_held_kernel
from normreg.kernels.layer_norm.tile import layer_norm_backward_kernel, layer_norm_forward_kernel
from normreg.kernels.layer_norm.tiles import layer_norm_backward_tiles_kernel, layer_norm_forward_tiles_kernel
from normreg.kernels.layer_norm.wide import layer_norm_backward_wide_kernel
from normreg.kernels.memory_format import in_rows
from normreg.kernels.tiling.rows import Rows, RowTile


class Forward(NamedTuple):
    main: launch.Launch
    rows: int
    statistics: int  # how many numbers are saved of a row
    compute_dtype: torch.dtype  # of these


@launch.kept
def forward_launch(
    shape: torch.Size,
    cols: int,
    dtype: torch.dtype,
    stride: int | None,
    eps: float,
    centered: bool,
    channels_first: bool,
    device: torch.device,
) -> Forward:
    rows = Rows.of(shape, cols, channels_first, stride)
    tile = tiling.rows.layer_norm_forward_tile(rows, dtype)
    constants = dict(CENTERED=centered, **rows.constants(tile))
    if tile.tiles > 1:
        kernel = layer_norm_forward_tiles_kernel
    else:
        kernel = layer_norm_forward_kernel if tile.covers(rows) else layer_norm_forward_chunks_kernel
        constants["CHANNELS_FIRST"] = channels_first
    numbers = *rows.in_vectors(), rows.stride_in_vectors(), eps
    main = launch.Launch(kernel, (rows.tiles(tile),), device, *numbers, **constants)
    return Forward(main, rows.count, statistics_of(centered), dtypes.compute_dtype(dtype))


def statistics_of(centered: bool) -> int:
    """How many numbers are saved of a row: both parts of its mean and rstd, or rstd alone."""
    return 3 if centered else 1


def where_they_are(x: Tensor, cols: int, channels_first: bool) -> tuple[Tensor, int | None]:
    """x or a copy whose rows can be read, and how many elements apart these are, None where it is cols."""
    if channels_first or x.is_contiguous():
        return x.contiguous(), None
    x = in_rows(x, cols)
    return x, None if x.is_contiguous() else x.stride(0)


def layer_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalized_shape: Sequence[int],
    eps: float,
    out_dtype: torch.dtype,
    save_statistics: bool,
    centered: bool = True,
    channels_first: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """y in `out_dtype`, and statistics of each row, [rows, 3] or [rows, 1], None where not to be saved.

    A row is what `normalized_shape` says of the last dimensions or, of a channels-first (N, C, *) tensor, the
    channels of a position.
    """
    weight = None if weight is None else weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    cols = math.prod(normalized_shape)
    y = torch.empty_like(x, dtype=out_dtype, memory_format=torch.contiguous_format)
    x, stride = where_they_are(x, cols, channels_first)
    main, rows, numbers, compute_dtype = forward_launch(
        y.shape, cols, x.dtype, stride, eps, centered, channels_first, x.device
    )
    statistics = x.new_empty(rows, numbers, dtype=compute_dtype) if save_statistics else None
    launch.launch(main, x, y, statistics, weight, bias)
    return y, statistics


class Backward(NamedTuple):
    sums: launch.Launch | None  # of c1 and c2, where the row is too wide to be held
    main: launch.Launch
    programs: int  # that add up rows


@launch.kept
def backward_launches(
    shape: torch.Size,
    cols: int,
    x_dtype: torch.dtype,
    dy_dtype: torch.dtype,
    stride: int | None,
    centered: bool,
    channels_first: bool,
    device: torch.device,
) -> Backward | None:
    """None where rows are too wide to be read further apart than they are long.

    They leave no register for another address: 16384 columns of 16 bits would spill 8 bytes on sm_100.
    """
    rows = Rows.of(shape, cols, channels_first, stride)
    dtype = max(x_dtype, dy_dtype, key=lambda d: d.itemsize)
    if (tile := tiling.rows.layer_norm_backward_held_tile(rows, dtype)) is not None:
        return held_launch(rows, tile, centered, device)
    tile = tiling.rows.layer_norm_backward_tile(rows, dtype, centered)
    if stride is not None and (tile.tiles > 1 or not tile.covers(rows)):
        return None
    kernel, sums, col_blocks = layer_norm_backward_tiles_kernel, None, 1
    sizes, constants = rows.in_vectors(), dict(CENTERED=centered)
    if tile.tiles == 1:
        kernel = layer_norm_backward_kernel
        if not tile.covers(rows):
            if (wide := wide_launch(rows, dtype, centered, device)) is not None:
                return wide
            sums = sums_launch(rows, dtype, centered, device)
            tile = tiling.rows.layer_norm_backward_parameters_tile(rows, dtype)
            col_blocks = triton.cdiv(rows.cols, tile.cols)
        sizes = (*sizes, rows.stride_in_vectors(), rows.tiles(tile))
        constants.update(CHANNELS_FIRST=channels_first, IN_BLOCKS=col_blocks > 1)
    programs = tiling.partials.row_programs(tile, rows.tiles(tile), col_blocks, device)
    grid = (col_blocks, programs)
    main = launch.Launch(kernel, grid, device, *sizes, **constants, **rows.constants(tile))
    return Backward(sums, main, programs)


def held_launch(rows: Rows, tile: RowTile, centered: bool, device: torch.device) -> Backward:
    rows_at_once, programs = tiling.partials.held_rows(rows.rows, tile, device)
    main = launch.Launch(
        layer_norm_backward_held_kernel,
        (1, programs),
        device,
        *rows.in_vectors(),
        rows.stride_in_vectors(),
        rows_at_once,
        CENTERED=centered,
        **rows.constants(tile),
    )
    return Backward(None, main, programs)


def wide_launch(rows: Rows, dtype: torch.dtype, centered: bool, device: torch.device) -> Backward | None:
    """None where rows are too wide for their column sums."""
    tile = tiling.rows.layer_norm_backward_wide_tile(rows, dtype, centered)
    if tile is None:
        return None
    side_by_side = triton.cdiv(rows.cols, tile.tiles * tile.cols)
    programs = tiling.partials.programs(rows.rows, side_by_side, 1, 1, device)
    main = launch.Launch(
        layer_norm_backward_wide_kernel,
        (side_by_side, programs),
        device,
        *rows.in_vectors(),
        CENTERED=centered,
        **rows.constants(tile),
    )
    return Backward(None, main, programs)


@launch.kept
def sums_launch(rows: Rows, dtype: torch.dtype, centered: bool, device: torch.device) -> launch.Launch:
    tile = tiling.rows.layer_norm_chunk_tile(rows, dtypes.compute_dtype(dtype))
    return launch.Launch(
        layer_norm_backward_sums_kernel,
        (rows.tiles(tile),),
        device,
        *rows.in_vectors(),
        CENTERED=centered,
        CHANNELS_FIRST=rows.channels_first,
        **rows.constants(tile),
    )


def row_sums(
    sums: launch.Launch | None,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    centered: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """c1 and c2 of each row, c2 None where rows are not centred; both None without a launch for them."""
    if sums is None:
        return None, None
    c1 = statistics.new_empty(statistics.shape[0])
    c2 = torch.empty_like(c1) if centered else None
    launch.launch(sums, dy, x, weight, statistics, c1, c2)
    return c1, c2


def at_a_word(t: Tensor) -> Tensor:
    """The tensor or, where it begins within a word of 4 bytes, a copy that does not."""
    return t.clone() if t.data_ptr() % 4 else t


def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    normalized_shape: Sequence[int],
    parameter_dtype: torch.dtype,
    wanted: Sequence[bool],
    centered: bool = True,
    channels_first: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The wanted ones of dx, dweight and dbias, None for the others."""
    want_dx, *want_parameters = wanted
    dy = dy.contiguous()
    weight = None if weight is None else weight.contiguous()
    cols = math.prod(normalized_shape)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if want_dx else None
    x, stride = where_they_are(x, cols, channels_first)
    sizes, options = (dy.shape, cols, x.dtype, dy.dtype), (centered, channels_first, x.device)
    launches = backward_launches(*sizes, stride, *options)
    if launches is None:
        x = x.contiguous()
        launches = backward_launches(*sizes, None, *options)
    sums, main, programs = launches
    if main.kernel is layer_norm_backward_held_kernel:
        dy, x = at_a_word(dy), at_a_word(x)
    c1, c2 = row_sums(sums if want_dx else None, dy, x, weight, statistics, centered)
    partials = [statistics.new_empty(programs, cols) if want else None for want in want_parameters]
    launch.launch(main, dy, x, dx, weight, statistics, c1, c2, *partials)
    dweight, dbias = column_sums(partials, want_parameters, parameter_dtype)
    if len(normalized_shape) > 1:
        dweight, dbias = (None if grad is None else grad.view(normalized_shape) for grad in (dweight, dbias))
    return dx, dweight, dbias
