"""Sums over the rows of partial results [programs, cols], in the same order every time.

Programs that add up rows keep their sums to themselves, one row each, and this last small launch adds these:
no atomics, so a result depends on no timing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from normreg.kernels import launch, tiling


class Pair(NamedTuple):
    first: tl.tensor
    second: tl.tensor


@triton.jit
def column_sum(partials_ptr, programs, col, cols, TILE: tl.constexpr):
    """The sums [col] over all rows."""
    ROWS: tl.constexpr = TILE.rows
    total = tl.zeros([ROWS, col.shape[0]], partials_ptr.dtype.element_ty)
    for start in range(0, programs, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        mask = (row < programs)[:, None] & (col < cols)[None, :]
        total += tl.load(partials_ptr + row[:, None] * cols + col[None, :], mask=mask, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def store_column_sums(partials_ptr, sums_ptr, programs, col, cols, TILE: tl.constexpr):
    """Nothing where a tensor is absent."""
    if sums_ptr is not None:
        total = column_sum(partials_ptr, programs, col, cols, TILE)
        tl.store(sums_ptr + col, total.to(sums_ptr.dtype.element_ty), mask=col < cols)


@triton.jit(do_not_specialize=["programs", "cols"])
def column_sums_kernel(
    partials: Pair,  # [programs, cols] or None
    sums: Pair,  # [cols] or None
    programs,
    cols,  # in vectors
    TILE: tl.constexpr,
):
    cols = cols * TILE.vector
    col = tl.program_id(0) * TILE.cols + tl.arange(0, TILE.cols)
    store_column_sums(partials.first, sums.first, programs, col, cols, TILE)
    store_column_sums(partials.second, sums.second, programs, col, cols, TILE)


@launch.kept
def column_sums_launch(programs: int, cols: int, device: torch.device) -> launch.Launch:
    vector = tiling.hardware.vector(cols)
    tile = tiling.partials.column_sums_tile(cols, device)._replace(vector=vector)
    grid = (triton.cdiv(cols, tile.cols),)
    return launch.Launch(
        column_sums_kernel, grid, device, programs, cols // vector, num_warps=tile.num_warps, TILE=tile
    )


def column_sums(
    partials: Sequence[Tensor | None], wanted: Sequence[bool], dtype: torch.dtype
) -> list[Tensor | None]:
    """The wanted sums [cols] of two partial results [programs, cols] or None; None for the others."""
    sums = [
        partial.new_empty(partial.shape[1], dtype=dtype) if want else None
        for partial, want in zip(partials, wanted)
    ]
    present = next((partial for partial in partials if partial is not None), None)
    if present is not None:
        launch.launch(column_sums_launch(*present.shape, present.device), *partials, *sums)
    return sums
