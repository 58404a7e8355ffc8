"""Tiles of operations on elements: dropout."""

import torch
import triton

from normreg.kernels.tiling import hardware
from normreg.kernels.tiling.rows import RowTile


def dropout_calls() -> int:
    """Philox calls of a program: 256, so 2 x 16 bytes a thread with 4 warps in 16 bits."""
    return 256 * hardware.tile_scale()


DROPOUT_NUM_WARPS = 4
ELEMENTS_TILE = 2048  # 4 warps x 16


def elements_tile(rows: int, cols: int) -> RowTile:
    """A tile of [rows, cols] where no row is whole."""
    return _elements_tile(rows, cols, ELEMENTS_TILE, ELEMENTS_TILE)


def _elements_tile(rows: int, cols: int, elements: int, widest: int) -> RowTile:
    """A tile of so many elements, as wide as leaves at most an eighth beyond the cols.

    At least 8 wide, the elements of a Philox call; one row is as long as a batch is large.
    """
    elements *= hardware.tile_scale()
    width = elements if rows == 1 else widest * hardware.tile_scale()
    while rows > 1 and width > 8 and triton.cdiv(cols, width) * width * 7 > cols * 8:
        width //= 2
    return RowTile(elements // width, width, 4, vector=hardware.vector(cols))


# 16 bytes in 16 bits of each of 128 threads: all that a thread holds lies below one vector of the bias
BIAS_ACT_WIDTH = 1024


def bias_act_forward_tile(rows: int, cols: int) -> RowTile:
    """32 elements a thread: with 16, addresses and the keys of the mask are 2 of its instructions more."""
    return _elements_tile(rows, cols, 2 * ELEMENTS_TILE, BIAS_ACT_WIDTH)


def bias_act_backward_tile(rows: int, cols: int, bits: int) -> RowTile:
    """16 elements a thread: with 32, two loads and the sums take 165 registers.

    8 where decisions have 32 bits: with 16, those of float32 and GELU spill 8 bytes on sm_90.
    """
    tile = _elements_tile(rows, cols, ELEMENTS_TILE, BIAS_ACT_WIDTH)
    return tile._replace(num_warps=2 * tile.num_warps) if bits == 32 else tile


DROPOUT_TILE = 2048  # elements of a tile with shared decisions: 16 a thread, as above


def dropout_grouped_tile(groups: int, positions: int, groups_last: bool) -> RowTile:
    """Groups and positions, as many as can be of the contiguous ones, then of the others."""
    elements = DROPOUT_TILE * hardware.tile_scale()
    if groups_last:
        # a thread draws for each of its contiguous elements: over twice the positions these are 16
        # instructions an element in 16 bits, and not 25
        elements *= 2
        width = min(triton.next_power_of_2(groups), hardware.CHANNEL_TILE_WIDTH)
        return RowTile(width, elements // width, DROPOUT_NUM_WARPS)
    length = min(triton.next_power_of_2(positions), elements)
    return RowTile(elements // length, length, DROPOUT_NUM_WARPS)


def dropout_channels_last_tile(channels: int, positions: int) -> RowTile:
    """Channels, which are contiguous, and positions, whose decisions are drawn 4 or 8 at a time."""
    width = min(triton.next_power_of_2(channels), hardware.CHANNEL_TILE_WIDTH)
    length = min(triton.next_power_of_2(positions), 2 * DROPOUT_TILE * hardware.tile_scale() // width)
    return RowTile(width, length, DROPOUT_NUM_WARPS, vector=hardware.vector(channels))


def dropout_bits(dtype: torch.dtype, p: float) -> int:
    """Random bits an element: 16 for 16-bit types, 32 for wider ones.

    p is rounded to a multiple of 2^-bits, which the scale accounts for exactly. 16 bits are taken only
    where the rounding moves neither p nor 1 - p by more than 2^-9 of itself.
    """
    return 16 if dtype.itemsize == 2 and 2**-8 <= p <= 1 - 2**-8 else 32
