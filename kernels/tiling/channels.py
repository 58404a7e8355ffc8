"""Tiles of operations over channels: BatchNorm."""

import math
from typing import NamedTuple

import torch
import triton

from normreg.kernels.tiling import hardware
from normreg.kernels.tiling.rows import RowTile


class ChannelTile(NamedTuple):
    """Some positions of some channels of some samples, held at once: a constant of kernels."""

    samples: int
    channels: int  # of one group, where the tile is of groups
    spatial: int
    num_warps: int
    groups: int = 1
    tiles: int = 64  # that each thread adds up before they are merged, where they are cut into splits
    partials: int = 1  # partial results a channel that are merged at a time, where it is cut into splits
    channels_last: bool = False
    vector: int = 1  # what the contiguous size is a multiple of, which kernels take divided by it


CHANNEL_TILE = 1024  # elements of a tile of whole channels at least: a warp x 32, without barriers
SPLIT_TILE = 4096  # elements of a tile where channels are cut into splits: 4 warps x 32
MOST_SAMPLES = 64  # of a tile of splits whose samples lie side by side
SHORTEST = 256  # positions of a tile that is cut short: 512 bytes in 16 bits
MAX_CHANNEL_SPLITS = 128  # of a block of channels: 64 of them in channels-last are one, with all the programs


def batch_norm_split_tile(samples: int, channels: int, spatial: int, channels_last: bool) -> ChannelTile:
    """The tile is as long as can be along the contiguous dimension, then over samples, then over channels.

    It has up to 64 samples, a power of two not larger than the batch, so that few batches are compiled for.
    Sums over positions are cheaper than over channels. Where the longest tile masks more than a sixteenth of
    the positions, it is shorter. In contiguous format the number of channels plays no part: a split group's
    result depends on no other group. The partial results merged at a time are four numbers of each kind a
    thread.
    """
    elements = SPLIT_TILE * hardware.tile_scale()
    width = hardware.CHANNEL_TILE_WIDTH
    if channels_last:
        width = min(triton.next_power_of_2(channels), width)
        length = elements // width
    else:
        longest = min(triton.next_power_of_2(spatial), elements)
        shortest = min(longest, SHORTEST * hardware.tile_scale())
        lengths = [longest >> halvings for halvings in range((longest // shortest).bit_length())]
        masked = {length: -spatial % length for length in lengths}
        fewest = max(min(masked.values()), spatial // 16)
        length = next(length for length in lengths if masked[length] <= fewest)
        side_by_side = min(elements // length, MOST_SAMPLES, 1 << (samples.bit_length() - 1))
        while side_by_side > 1 and side_by_side * channels * spatial >= 2**31:
            side_by_side //= 2
        width = min(width, elements // (length * side_by_side))
    partials = max(1, min(hardware.MAX_SPLITS, 512 // width))
    return ChannelTile(elements // (length * width), width, length, num_warps=4, partials=partials)


def _batch_norm_tile(
    samples: int,
    channels: int,
    spatial: int,
    channels_last: bool,
    compute_dtype: torch.dtype,
    held_words: int,
    words_per_thread: int,
) -> ChannelTile | None:
    """A tile of whole channels; None where one has too many elements, or offsets that need 64 bits."""
    block_samples, block_spatial = triton.next_power_of_2(samples), triton.next_power_of_2(spatial)
    words = block_samples * block_spatial * hardware.words_of(compute_dtype)
    most = triton.next_power_of_2(channels)
    fewest = min(most, hardware.CHANNEL_TILE_WIDTH) if channels_last else 1
    if fewest * words > held_words or samples * channels * spatial >= 2**31:
        return None
    width = min(most, max(fewest, CHANNEL_TILE * hardware.tile_scale() // words))
    num_warps = min(32, max(1, width * words // (32 * words_per_thread)))
    return ChannelTile(block_samples, width, block_spatial, num_warps)


def batch_norm_forward_tile(
    samples: int,
    channels: int,
    spatial: int,
    channels_last: bool,
    compute_dtype: torch.dtype,
    residual: bool = False,
) -> ChannelTile | None:
    """32 elements a thread share what it does once: 14x14 maps take 23 instructions an element, with 16 31.

    Their loads are in flight at once, 36 KB of 16 bits for the 18 warps a multiprocessor has room for. In
    channels-last format offsets take registers of their own: half the words, in all and a thread; where a
    residual is loaded as well, half of these.
    """
    share = (4 if residual else 2) if channels_last else 1
    held_words, words_per_thread = hardware.TILE_WORDS_FORWARD // share, 32 // share
    sizes = samples, channels, spatial, channels_last
    return _batch_norm_tile(*sizes, compute_dtype, held_words, words_per_thread)


def batch_norm_backward_tile(
    samples: int, channels: int, spatial: int, channels_last: bool, compute_dtype: torch.dtype
) -> ChannelTile | None:
    words_per_thread = 16 if channels_last else 32
    sizes = samples, channels, spatial, channels_last
    return _batch_norm_tile(*sizes, compute_dtype, hardware.TILE_WORDS_BACKWARD, words_per_thread)


def batch_norm_splits(
    tiles: int, positions: int, channel_blocks: int, device: torch.device
) -> tuple[int, int]:
    """(splits, tiles of each), none of them empty.

    Up to four programs a multiprocessor, of at least four tiles each, whose sums are reduced but once; fewer
    tiles are shared out so that every multiprocessor has a program.
    positions: of a channel in a tile. A program of the second launch loads 12 bytes of each split, and moves
    4 of each position in 16 bits: splits are so few that the former are no more than the latter.
    """
    multiprocessors = hardware.multiprocessors(device)
    most = max(1, math.isqrt(tiles * positions // 3))
    side_by_side = triton.cdiv(4 * multiprocessors, channel_blocks)
    enough = max(tiles // 4, triton.cdiv(multiprocessors, channel_blocks))
    splits = min(tiles, MAX_CHANNEL_SPLITS, most, side_by_side, enough)
    tiles_per_split = triton.cdiv(tiles, splits)
    return triton.cdiv(tiles, tiles_per_split), tiles_per_split


def sync_batch_norm_tile(channels: int) -> RowTile:
    """Ranks or splits (rows), and channels, merged at a time: 8 float64 of each kind a thread."""
    return RowTile(16, min(triton.next_power_of_2(channels), 64), 4)
