"""Every tile, warp count and number of programs, with its reason.

Numbers are formulas of the shape and the device, so that a result depends on neither timing nor
tuning. A forward tile depends on the row's width alone: a row's result does not depend on how many
other rows there are. Figures quoted are registers a thread from code compiled for sm_90.
"""

import math
from typing import NamedTuple

import torch
import triton

from . import launch

# A program costs the interpreter milliseconds whatever its size, so there a program takes this many
# times the rows or elements. The test suite sets it to 1: what it checks are the tiles of the GPU.
INTERPRETER_TILE_SCALE = 64


def tile_scale():
    return INTERPRETER_TILE_SCALE if launch.INTERPRET else 1


class RowTile(NamedTuple):
    rows: int
    cols: int
    num_warps: int
    parts: int = 1  # so many that are held beside each other, each of cols
    packed: bool = False  # held two elements of 16 bits in a word
    stages: int = 1  # of a loop over tiles: with 3 the next tile is being copied while one is computed

    def holds(self, rows):
        return self.parts * self.cols >= rows.cols

    def constants(self):
        """As kernels take them: of rows in a tile, or of a row in parts."""
        if self.parts > 1:
            return dict(PARTS=self.parts, BLOCK_COLS=self.cols)
        return dict(BLOCK_ROWS=self.rows, BLOCK_COLS=self.cols)


# 32-bit words of a row that its program holds in registers; an element of float64 is two.
HELD_WORDS_FORWARD = 16384  # 32 warps x 16 words: 51 registers
HELD_WORDS_BACKWARD = 8192  # 16 warps x 16 words: 128 registers, with both column sums
CHUNK_WORDS = 4096  # of a wider row: 8 warps x 16 words
PART = 8  # elements a thread of a part of a row: 16 bytes in 16 bits
# Bytes of one row that the forward holds in parts: 32 words a thread, of 64 registers at 32 warps.
HELD_BYTES_FORWARD = 131072
HELD_UNPACKED = 32768  # elements; with more those of 16 bits stay packed
# Columns of 16 bits that the backward holds in parts with one column sum or, centred, two: 160 and 192
# registers a thread, of 255 at 8 warps. RMSNorm's 24576 spill 8 bytes on sm_100, 12288 of 32 bits 32.
HELD_COLS_BACKWARD = {False: 20480, True: 16384}
HELD_WARPS_BACKWARD = 8
WARP_TILE = 1024  # words of one warp in the forward: its reductions need no barrier
MOST_POSITIONS = 64  # of a channels-first tile: 128 bytes in 16 bits
FEWEST_POSITIONS = 8  # 16 bytes in 16 bits: an access of one thread


def _words(compute_dtype):
    return compute_dtype.itemsize // 4


def _row_tile(rows, compute_dtype, held_words, words_per_thread):
    """Several rows of one warp each where a row is short, one row over several warps where not."""
    words = _words(compute_dtype)
    if rows.cols * words > held_words:
        return layer_norm_chunk_tile(rows, compute_dtype)
    block_cols = triton.next_power_of_2(rows.cols)
    block_rows = max(1, WARP_TILE // (block_cols * words)) * tile_scale()
    num_warps = min(32, max(1, block_rows * block_cols * words // (32 * words_per_thread)))
    return RowTile(block_rows, block_cols, num_warps)


def layer_norm_chunk_tile(rows, compute_dtype):
    """Of rows too wide to be held."""
    elements = CHUNK_WORDS // _words(compute_dtype)
    return RowTile(32, elements // 32, 8) if rows.channels_first else RowTile(1, elements, 8)


def _at_16_bytes(rows, dtype):
    """Whether every row starts at a multiple of as many."""
    return launch.vector(rows.cols) * dtype.itemsize >= 16


def _row_in_parts_tile(rows, num_warps, packed):
    cols = num_warps * 32 * PART
    return RowTile(1, cols, num_warps, triton.cdiv(rows.cols, cols), packed)


def _channels_first_tile(rows, compute_dtype, held_words):
    """Positions, which are contiguous, times all channels where these can be held, else times some."""
    words = _words(compute_dtype)
    block_cols = triton.next_power_of_2(rows.cols)
    block_rows = min(MOST_POSITIONS, held_words // words // block_cols, triton.next_power_of_2(rows.rows))
    if block_rows < min(FEWEST_POSITIONS, rows.rows):
        return layer_norm_chunk_tile(rows, compute_dtype)
    num_warps = min(32, max(1, block_rows * block_cols * words // (32 * 16)))  # 16 words a thread
    return RowTile(block_rows, block_cols, num_warps)


def layer_norm_forward_tile(rows, dtype):
    held_as = launch.compute_dtype(dtype)
    if rows.channels_first:
        return _channels_first_tile(rows, held_as, HELD_WORDS_FORWARD)
    # 32 words a thread spill on sm_80 where the row has 16384
    words_per_thread = 32 if rows.cols * _words(held_as) <= 8192 else 16
    return _forward_in_parts(_row_tile(rows, held_as, HELD_WORDS_FORWARD, words_per_thread), rows, dtype)


def _forward_in_parts(tile, rows, dtype):
    """Rows that have a program each, where they can be held in parts; else the tile.

    float64 would spill, as would loads that are not as wide as can be.
    """
    held = rows.cols * dtype.itemsize <= HELD_BYTES_FORWARD and dtype.itemsize <= 4
    if tile.rows > 1 or not held or not _at_16_bytes(rows, dtype):
        return tile
    # 1024 to 2047 elements a warp, in parts of 256: LayerNorm of 5120 in 16 bits takes 16 instructions an
    # element, and 30 in one tile of 8192
    num_warps = 1 << min(5, max(0, rows.cols.bit_length() - 11))
    return _row_in_parts_tile(rows, num_warps, dtype.itemsize == 2 and rows.cols > HELD_UNPACKED)


def layer_norm_backward_tile(rows, dtype, centered=True):
    """dtype: the wider one of x's and dy's."""
    # two tiles are loaded and two accumulated: half the words a thread of the forward, and a quarter where
    # there are rows to sum over at the end, or temporaries of float64
    held_as = launch.compute_dtype(dtype)
    held_words = HELD_WORDS_BACKWARD // _words(held_as)
    if rows.channels_first:
        return _channels_first_tile(rows, held_as, held_words)
    several_rows = triton.next_power_of_2(rows.cols) < WARP_TILE
    words_per_thread = 8 if several_rows or dtype == torch.float64 else 16
    tile = _row_tile(rows, held_as, held_words, words_per_thread)
    if tile.holds(rows):
        return tile._replace(stages=_backward_stages(rows, dtype))
    if dtype.itemsize == 2 and rows.cols <= HELD_COLS_BACKWARD[centered] and _at_16_bytes(rows, dtype):
        return _row_in_parts_tile(rows, HELD_WARPS_BACKWARD, packed=True)
    return tile


def _backward_stages(rows, dtype):
    # The second of 2 stages would only wait for the copy that ends the first. 3 stages of 16 bits take 128
    # registers, all there are for 16 warps, and 65 KiB of shared memory at most; of float32 they take 153 or
    # spill, as do rows that cannot be copied 4 bytes at a time.
    return 3 if dtype.itemsize == 2 and _at_16_bytes(rows, dtype) else 1


def dropout_add_norm_forward_tile(rows, dtype):
    # two tiles are loaded and a mask is drawn: half the words a thread of layer_norm
    tile = _row_tile(rows, launch.compute_dtype(dtype), HELD_WORDS_FORWARD, 16)
    return _at_least_a_call(_forward_in_parts(tile, rows, dtype))


def dropout_add_norm_backward_tile(rows, compute_dtype):
    held_words = HELD_WORDS_BACKWARD // _words(compute_dtype)
    return _at_least_a_call(_row_tile(rows, compute_dtype, held_words, 8))


def dropout_add_norm_backward_parameters_tile():
    return RowTile(16, 128, 8)  # 8 elements a thread: a third sum and a mask beside layer_norm's


def _at_least_a_call(tile):
    """8 elements of a row are decided by one Philox call."""
    return tile._replace(rows=max(1, tile.rows * tile.cols // 8), cols=8) if tile.cols < 8 else tile


def layer_norm_backward_parameters_tile(rows, dtype):
    # 256 bytes of each row in 16 bits, or 128 bytes of each channel; 16 elements a thread
    if rows.channels_first:
        return RowTile(64, 32, 4)
    return RowTile(16, 128, 4, stages=_backward_stages(rows, dtype))


def layer_norm_backward_programs(tile, tiles, col_blocks, device):
    """Rows of partial sums: as many programs as run at a time, four a multiprocessor at most, and at least
    eight tiles for each.

    128 registers a thread leave room for 16 warps a multiprocessor, 255 for 8. A partial sum is 8 bytes
    written and 8 read for every 6 x 8 x tile.rows bytes of the tiles.
    """
    warps = 8 if tile.parts > 1 else 16
    at_a_time = min(4, max(1, warps // tile.num_warps)) * launch.multiprocessors(device)
    return max(1, min(triton.cdiv(at_a_time, col_blocks), triton.cdiv(tiles, 8)))


def layer_norm_backward_finish_tile():
    return RowTile(32, 64, 4)  # 256 bytes of each partial row; few partials, so latency decides


class ChannelTile(NamedTuple):
    samples: int
    channels: int
    spatial: int
    num_warps: int


CHANNEL_TILE = 2048  # elements of a tile: 4 warps x 16
CHANNEL_TILE_WIDTH = 64  # channels of a tile at most: 128 bytes of a channels-last position in 16 bits
MAX_SPLITS = 64  # partial results a group; every program of the second launch merges them all
MAX_CHANNEL_SPLITS = 128  # a channel's: 64 channels in channels-last are one block, and all the programs


def batch_norm_tile(channels, spatial, channels_last):
    """As long as it can be along the contiguous dimension, then over the next, then over samples."""
    elements = CHANNEL_TILE * tile_scale()
    width = min(triton.next_power_of_2(channels), CHANNEL_TILE_WIDTH)
    if channels_last:
        return ChannelTile(1, width, elements // width, num_warps=4)
    length = min(triton.next_power_of_2(spatial), elements)
    width = min(width, elements // length)
    return ChannelTile(elements // (length * width), width, length, num_warps=4)


def _batch_norm_held_tile(
    samples, channels, spatial, channels_last, compute_dtype, held_words, words_per_thread
):
    """All elements of one or more channels; None where they are too many, or their offsets need 64 bits."""
    block_samples, block_spatial = triton.next_power_of_2(samples), triton.next_power_of_2(spatial)
    words = block_samples * block_spatial * _words(compute_dtype)
    most = triton.next_power_of_2(channels)
    fewest = min(most, CHANNEL_TILE_WIDTH) if channels_last else 1
    if fewest * words > held_words or samples * channels * spatial >= 2**31:
        return None
    width = min(most, max(fewest, CHANNEL_TILE * tile_scale() // words))
    num_warps = min(32, max(1, width * words // (32 * words_per_thread)))
    return ChannelTile(block_samples, width, block_spatial, num_warps)


def batch_norm_held_forward_tile(samples, channels, spatial, channels_last, compute_dtype, residual=False):
    # offsets of channels-last elements take registers of their own: half the words; and half of these, in
    # all and a thread, where a residual is loaded beside them
    parts = (4 if residual else 2) if channels_last else 1
    words_per_thread = 8 if parts == 4 else 16
    return _batch_norm_held_tile(
        samples,
        channels,
        spatial,
        channels_last,
        compute_dtype,
        HELD_WORDS_FORWARD // parts,
        words_per_thread,
    )


def batch_norm_held_backward_tile(samples, channels, spatial, channels_last, compute_dtype):
    words_per_thread = 16 if channels_last else 8
    return _batch_norm_held_tile(
        samples, channels, spatial, channels_last, compute_dtype, HELD_WORDS_BACKWARD, words_per_thread
    )


def batch_norm_splits(tiles, positions, channel_blocks, device):
    """(splits, tiles of each): enough programs for four a multiprocessor, none of them empty.

    `positions` of a channel are in a tile. A program of the second launch loads 24 bytes of each split, and
    moves 4 of each position in 16 bits: so many splits at most that the former are no more than the latter.
    """
    most = max(1, math.isqrt(tiles * positions // 6))
    side_by_side = triton.cdiv(4 * launch.multiprocessors(device), channel_blocks)
    splits = min(tiles, MAX_CHANNEL_SPLITS, most, side_by_side)
    tiles_per_split = triton.cdiv(tiles, splits)
    return triton.cdiv(tiles, tiles_per_split), tiles_per_split


def batch_norm_merged_splits(block_channels):
    """Partial results a channel that are merged at a time: four float64 of each kind a thread."""
    return max(1, min(MAX_SPLITS, 512 // block_channels))


def sync_batch_norm_tile(channels):
    """Ranks or splits, and channels, that are merged at a time: 8 float64 of each kind a thread."""
    return RowTile(16, min(triton.next_power_of_2(channels), 64), 4)


class GroupNormTile(NamedTuple):
    samples: int
    groups: int
    channels: int  # of one group, all of them
    spatial: int  # of one channel, all of it
    num_warps: int


def _group_norm_tile(groups, channels, spatial, compute_dtype, held_words, words_per_thread):
    """Several groups of one warp each where they are small; None where one is too large to be held.

    Adjacent groups of a sample first, which are contiguous, then the same ones of several samples.
    """
    block_channels, block_spatial = triton.next_power_of_2(channels), triton.next_power_of_2(spatial)
    words = block_channels * block_spatial * _words(compute_dtype)
    if words > held_words:
        return None
    rows = max(1, WARP_TILE // words) * tile_scale()
    block_groups = min(triton.next_power_of_2(groups), rows)
    num_warps = min(32, max(1, rows * words // (32 * words_per_thread)))
    return GroupNormTile(rows // block_groups, block_groups, block_channels, block_spatial, num_warps)


def group_norm_forward_tile(groups, channels, spatial, compute_dtype):
    # 32 words a thread, 16 by 32 warps where a group has 16384, as in layer_norm
    return _group_norm_tile(groups, channels, spatial, compute_dtype, HELD_WORDS_FORWARD, 32)


def group_norm_backward_tile(groups, channels, spatial, compute_dtype):
    # two tiles are loaded; where there is one position a channel, its two sums are as large
    words_per_thread = 16 if spatial > 1 else 8
    held_words = HELD_WORDS_BACKWARD // _words(compute_dtype)
    return _group_norm_tile(groups, channels, spatial, compute_dtype, held_words, words_per_thread)


def group_norm_backward_programs(samples, spatial, tile, group_blocks, device):
    """Rows of partial sums: four programs a multiprocessor, and at least 64 positions for each.

    A partial sum is 8 bytes written and 8 read for every 6 x 64 of the positions.
    """
    tiles = triton.cdiv(samples, tile.samples)
    side_by_side = triton.cdiv(4 * launch.multiprocessors(device), group_blocks)
    return max(1, min(side_by_side, triton.cdiv(tiles, triton.cdiv(64, tile.samples * spatial))))


GROUP_NORM_SPLIT_TILES = 16  # 32768 elements: what a program does in a few microseconds


def group_norm_splits(tiles, positions, group_blocks, device):
    """(splits, tiles of each), of the size of a group alone: its result depends on no other group."""
    tiles_per_split = max(GROUP_NORM_SPLIT_TILES, triton.cdiv(tiles, MAX_SPLITS))
    return triton.cdiv(tiles, tiles_per_split), tiles_per_split


def group_norm_merge_tile():
    """Channels of a group and splits whose sums are added at a time: 16 float64 a thread."""
    return RowTile(32, 64, 4)


def instance_norm_running_tile():
    return RowTile(32, 32, 4)  # samples, channels: 256 bytes of the statistics of a sample


def dropout_calls():
    """Philox calls a program: 256, so 2 x 16 bytes a thread with 4 warps in 16 bits."""
    return 256 * tile_scale()


DROPOUT_NUM_WARPS = 4
ELEMENTS_TILE = 2048  # 4 warps x 16


def elements_tile(rows, cols):
    """Of [rows, cols] of which only cols matter: as wide as leaves at most an eighth of it beyond the cols.

    At least 8 wide, the elements of a Philox call; one row is as long as a batch is large.
    """
    elements = ELEMENTS_TILE * tile_scale()
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
    elements = DROPOUT_TILE * tile_scale()
    if groups_last:
        # a thread draws for each of its contiguous elements: over twice the positions these are 16
        # instructions an element in 16 bits, and not 25
        elements *= 2
        width = min(triton.next_power_of_2(groups), CHANNEL_TILE_WIDTH)
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
    return RowTile(1, 2048 * min(tile_scale(), L2_PENALTY_CHUNK // 2048), 4)  # 16 elements a thread


def l2_penalty_merge_tile():
    return RowTile(1, 1024, 4)  # 8 float64 a thread; the only program, so latency decides
