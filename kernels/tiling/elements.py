"""Tiles of operations on elements: dropout and the L2 penalty."""

from typing import NamedTuple

import triton

from normreg.kernels.tiling import hardware
from normreg.kernels.tiling.rows import RowTile


def dropout_calls():
    """Philox calls a program: 256, so 2 x 16 bytes a thread with 4 warps in 16 bits."""
    return 256 * hardware.tile_scale()


DROPOUT_NUM_WARPS = 4
ELEMENTS_TILE = 2048  # 4 warps x 16


def elements_tile(rows, cols):
    """Of [rows, cols] of which only cols matter: as wide as leaves at most an eighth of it beyond the cols.

    At least 8 wide, the elements of a Philox call; one row is as long as a batch is large.
    """
    elements = ELEMENTS_TILE * hardware.tile_scale()
    width = elements
    while rows > 1 and width > 8 and triton.cdiv(cols, width) * width * 7 > cols * 8:
        width //= 2
    return RowTile(elements // width, width, 4)


class GroupTile(NamedTuple):
    groups: int
    positions: int


DROPOUT_TILE = 2048  # elements of a tile with shared decisions: 16 a thread, as above


def dropout_grouped_tile(groups, positions, groups_last):
    """As long as it can be along the contiguous dimension, then over the other."""
    elements = DROPOUT_TILE * hardware.tile_scale()
    if groups_last:
        # a thread draws for each of its contiguous elements: over twice the positions these are 16
        # instructions an element in 16 bits, and not 25
        elements *= 2
        width = min(triton.next_power_of_2(groups), hardware.CHANNEL_TILE_WIDTH)
        return GroupTile(width, elements // width)
    length = min(triton.next_power_of_2(positions), elements)
    return GroupTile(elements // length, length)


def dropout_bits(dtype, p):
    """Random bits an element: 16 for 16-bit types, 32 for wider ones.

    p is rounded to a multiple of 2^-bits, which the scale accounts for exactly. 16 bits are taken only
    where the rounding moves neither p nor 1 - p by more than 2^-9 of itself.
    """
    return 16 if dtype.itemsize == 2 and 2**-8 <= p <= 1 - 2**-8 else 32


L2_PENALTY_CHUNK = 32768  # elements a program: what it does in a few microseconds
L2_PENALTY_NUMBERS = 128  # of the table, written by one launch: 1 KiB of the 4 KiB of arguments it may have
L2_PENALTY_TENSORS = 512  # searched at a time for the one of a chunk: four a thread


def l2_penalty_tile():
    return RowTile(1, 2048 * min(hardware.tile_scale(), L2_PENALTY_CHUNK // 2048), 4)  # 16 elements a thread


def l2_penalty_merge_tile():
    return RowTile(1, 1024, 4)  # 8 float64 a thread; the only program, so latency decides
