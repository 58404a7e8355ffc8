"""Tiles of norms whose rows have more beside them than parameters: modulations, or a gate."""

import torch

from normreg.kernels import dtypes
from normreg.kernels.tiling import hardware
from normreg.kernels.tiling.rows import (
    Rows,
    RowTile,
    backward_stages,
    forward_in_tiles,
    held,
    row_in_tiles,
    row_tile,
)

COPIED_BYTES = 81920  # of 99 KiB, beside what warps exchange: the least shared memory since sm_80
GATED_COLS = 4096  # whose gated norm's backward has 8 elements a thread


def ada_norm_forward_tile(rows: Rows, dtype: torch.dtype, vector: int) -> RowTile:
    """vector: what the strides of modulations are a multiple of as well."""
    # up to six tensors are loaded: half the words a thread of layer_norm, or float32 would spill
    tile = row_tile(rows, dtypes.compute_dtype(dtype), hardware.TILE_WORDS_FORWARD, 16)
    if vector != rows.vector:
        return held(tile, rows)
    tile = forward_in_tiles(tile, rows, dtype)
    if tile.tiles > 1 and dtype == torch.float32:
        tile = row_in_tiles(rows, 2 * tile.num_warps, packed=False)
    return held(tile, rows)


def ada_norm_backward_tile(rows: Rows, dtype: torch.dtype, loaded: int) -> RowTile:
    """loaded: bytes of an element of all that is loaded for each row."""
    # three sums beside x_hat and dy: 8192 words spill at 16 warps, and take 255 registers at 8
    held_as = dtypes.compute_dtype(dtype)
    words = hardware.words_of(held_as)
    words_per_thread = 32 if rows.cols * words > 4096 else 16
    tile = row_tile(rows, held_as, hardware.TILE_WORDS_BACKWARD // words, words_per_thread)
    held(tile, rows)
    copied = 2 * loaded * tile.rows * tile.cols  # two stages of three
    return tile._replace(stages=backward_stages(rows, dtype) if copied <= COPIED_BYTES else 1)


def gated_norm_is_held(cols: int, dtype: torch.dtype) -> bool:
    """Whether a program holds a group of a row in the backward, and so in the forward.

    16 elements a thread of 8192 in 16 bits take 128 registers, all there are for 16 warps; of 32 bits they
    spill. dtype: the widest one of x's, gate's and y's.
    """
    return cols * dtype.itemsize <= 2 * hardware.TILE_WORDS_BACKWARD


def gated_norm_forward_tile(rows: Rows, dtype: torch.dtype) -> RowTile:
    # two tiles are loaded, as before a sum and a norm
    return held(row_tile(rows, dtypes.compute_dtype(dtype), hardware.TILE_WORDS_FORWARD, 16), rows)


def gated_norm_backward_tile(rows: Rows, dtype: torch.dtype) -> RowTile:
    # three tiles are loaded: half the words a thread of layer_norm, 99 registers; more would leave a program
    # less than 64. 3 stages of the wider rows spill
    wide = rows.cols > GATED_COLS
    tile = row_tile(rows, dtypes.compute_dtype(dtype), hardware.TILE_WORDS_BACKWARD, 16 if wide else 8)
    held(tile, rows)
    return tile if wide else tile._replace(stages=backward_stages(rows, dtype))
