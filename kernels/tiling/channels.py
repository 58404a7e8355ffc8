"""Tiles of operations over channels: BatchNorm."""

import math
from typing import NamedTuple

import triton

from normreg.kernels.tiling import hardware
from normreg.kernels.tiling.rows import RowTile


class ChannelTile(NamedTuple):
    samples: int
    channels: int
    spatial: int
    num_warps: int


CHANNEL_TILE = 2048  # elements of a tile: 4 warps x 16
MAX_CHANNEL_SPLITS = 128  # a channel's: 64 channels in channels-last are one block, and all the programs


def batch_norm_tile(channels, spatial, channels_last):
    """As long as it can be along the contiguous dimension, then over the next, then over samples."""
    elements = CHANNEL_TILE * hardware.tile_scale()
    width = min(triton.next_power_of_2(channels), hardware.CHANNEL_TILE_WIDTH)
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
    words = block_samples * block_spatial * hardware.words_of(compute_dtype)
    most = triton.next_power_of_2(channels)
    fewest = min(most, hardware.CHANNEL_TILE_WIDTH) if channels_last else 1
    if fewest * words > held_words or samples * channels * spatial >= 2**31:
        return None
    width = min(most, max(fewest, CHANNEL_TILE * hardware.tile_scale() // words))
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
        hardware.HELD_WORDS_FORWARD // parts,
        words_per_thread,
    )


def batch_norm_held_backward_tile(samples, channels, spatial, channels_last, compute_dtype):
    words_per_thread = 16 if channels_last else 8
    return _batch_norm_held_tile(
        samples,
        channels,
        spatial,
        channels_last,
        compute_dtype,
        hardware.HELD_WORDS_BACKWARD,
        words_per_thread,
    )


def batch_norm_splits(tiles, positions, channel_blocks, device):
    """(splits, tiles of each): enough programs for four a multiprocessor, none of them empty.

    `positions` of a channel are in a tile. A program of the second launch loads 24 bytes of each split, and
    moves 4 of each position in 16 bits: so many splits at most that the former are no more than the latter.
    """
    most = max(1, math.isqrt(tiles * positions // 6))
    side_by_side = triton.cdiv(4 * hardware.multiprocessors(device), channel_blocks)
    splits = min(tiles, MAX_CHANNEL_SPLITS, most, side_by_side)
    tiles_per_split = triton.cdiv(tiles, splits)
    return triton.cdiv(tiles, tiles_per_split), tiles_per_split


def batch_norm_merged_splits(block_channels):
    """Partial results a channel that are merged at a time: four float64 of each kind a thread."""
    return max(1, min(hardware.MAX_SPLITS, 512 // block_channels))


def sync_batch_norm_tile(channels):
    """Ranks or splits, and channels, that are merged at a time: 8 float64 of each kind a thread."""
    return RowTile(16, min(triton.next_power_of_2(channels), 64), 4)
