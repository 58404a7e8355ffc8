"""Tiles of operations over groups of channels: GroupNorm and InstanceNorm."""

import torch
import triton

from normreg.kernels.tiling import hardware, partials
from normreg.kernels.tiling.channels import ChannelTile
from normreg.kernels.tiling.rows import RowTile

RUN = 32  # channels of a channels-last position that a tile has at least: 64 bytes in 16 bits


def _group_norm_tile(
    groups: int,
    channels: int,
    spatial: int,
    channels_last: bool,
    compute_dtype: torch.dtype,
    held_words: int,
    words_per_thread: int,
) -> ChannelTile | None:
    """A tile of whole groups, several of one warp each where they are small; None where one is too large.

    It takes adjacent groups of a sample first, which are contiguous, then the same ones of several samples.
    In channels-last format these are as many as have RUN channels side by side, and offsets have 32 bits and
    registers of their own: where groups are small, half the words a warp.
    """
    block_channels, block_spatial = triton.next_power_of_2(channels), triton.next_power_of_2(spatial)
    words = block_channels * block_spatial * hardware.words_of(compute_dtype)
    channels_last, all_groups = channels_last or spatial == 1, triton.next_power_of_2(groups)
    fewest, warp_tile = 1, hardware.WARP_TILE
    if channels_last and spatial > 1:
        warp_tile //= 2
        fewest = min(all_groups, triton.next_power_of_2(triton.cdiv(RUN, channels)))
        if groups * channels * spatial >= 2**31:
            return None
    if fewest * words > held_words:
        return None
    rows = max(fewest, warp_tile // words) * hardware.tile_scale()
    block_groups = min(all_groups, rows)
    num_warps = min(32, max(1, rows * words // (32 * words_per_thread)))
    sizes = rows // block_groups, block_channels, block_spatial
    return ChannelTile(*sizes, num_warps, block_groups, channels_last=channels_last)


def group_norm_forward_tile(
    groups: int,
    channels: int,
    spatial: int,
    channels_last: bool,
    compute_dtype: torch.dtype,
    itemsize: int = 2,
    act: str | None = None,
) -> ChannelTile | None:
    """32 words a thread, 16 by 32 warps where a group has 16384, as in layer_norm.

    Half as many where elements have 32 bits and an activation, or one position a channel and so parameters
    that are as many: 32 of these took 166 registers, and 16 take 95.

    One sample's few groups are held by as few multiprocessors. A model says why: 16384 elements, loaded all
    at once, take one of them 2.1 us of instructions (28 each, 128 lanes at 1.76 GHz); splits take less of it,
    but another launch, 2 us or more.
    """
    words_per_thread = 16 if itemsize > 2 and (spatial == 1 or act is not None) else 32
    sizes = groups, channels, spatial, channels_last
    return _group_norm_tile(*sizes, compute_dtype, hardware.TILE_WORDS_FORWARD, words_per_thread)


def group_norm_backward_tile(
    groups: int,
    channels: int,
    spatial: int,
    channels_last: bool,
    compute_dtype: torch.dtype,
    itemsize: int = 2,
    act: str | None = None,
) -> ChannelTile | None:
    # two tiles are loaded; where there is one position a channel, its two sums are as large; 16 of SiLU in
    # 32 bits take 140 registers
    words_per_thread = 8 if spatial == 1 or (itemsize > 2 and act is not None) else 16
    if channels_last and channels == 1 and spatial > 1:
        # a thread has 8 groups with statistics of their own: 37 instructions an element, 58 with 16 words
        words_per_thread = 32
    held_words = hardware.TILE_WORDS_BACKWARD // hardware.words_of(compute_dtype)
    sizes = groups, channels, spatial, channels_last
    tile = _group_norm_tile(*sizes, compute_dtype, held_words, words_per_thread)
    if tile is not None and channels_last and spatial > 1 and channels > 1 and tile.groups > 1:
        # 16 words a thread of groups side by side take 229 registers; 8 take 108, and 83 instructions for 75
        tile = tile._replace(num_warps=min(32, 2 * tile.num_warps))
    return tile


def group_norm_backward_programs(
    samples: int, spatial: int, tile: ChannelTile, group_blocks: int, device: torch.device
) -> int:
    """As many programs as run at a time, four a multiprocessor at most, and at least 64 positions for each.

    128 registers leave room for 16 warps a multiprocessor. A partial sum is 8 bytes written and 8 read for
    every 6 x 64 of the positions.
    """
    tiles, tiles_each = triton.cdiv(samples, tile.samples), triton.cdiv(64, tile.samples * spatial)
    at_once = min(4, max(1, 16 // tile.num_warps))
    return partials.programs(tiles, group_blocks, at_once, tiles_each, device)


def group_norm_splits(tiles: int, positions: int, group_blocks: int, device: torch.device) -> tuple[int, int]:
    """(splits, tiles of each), by the sizes of one sample: its result depends on no other.

    One sample fills a GPU: of four tiles each, up to four programs a multiprocessor; of fewer, until each has
    one. Splits of 1, 2, 4 and 16 tiles take 16.1, 11.7, 9.4 and 7.6 instructions an element, of the 19 that
    the time to load it has room for.
    group_blocks: of a sample.
    """
    multiprocessors = hardware.multiprocessors(device)
    wave, most = (triton.cdiv(programs * multiprocessors, group_blocks) for programs in (1, 4))
    fewest = triton.cdiv(tiles, min(most, hardware.MAX_SPLITS))
    tiles_per_split = max(1, fewest, min(4, tiles // wave))
    return triton.cdiv(tiles, tiles_per_split), tiles_per_split


def group_norm_backward_split_warps(itemsize: int, act: str | None) -> int:
    """Those of the tile of splits, or twice: 32 elements a thread of 32 bits took 175 registers for SiLU."""
    return 8 if act is not None and itemsize > 2 else 4


def group_norm_merge_tile(group_channels: int) -> RowTile:
    """Splits and channels of a group whose partial results are merged at a time: 8 of each kind a thread."""
    channels = min(triton.next_power_of_2(group_channels), 32)
    return RowTile(32, channels, max(1, channels // 8))


def instance_norm_running_tile() -> RowTile:
    return RowTile(32, 32, 4)  # samples, channels: 256 bytes of the statistics of a sample
