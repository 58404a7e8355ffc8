"""How many programs add up tiles, and the tile of the launch that adds up what they leave."""

import torch
import triton

from normreg.kernels.tiling import hardware
from normreg.kernels.tiling.rows import RowTile


def programs(
    tiles: int, side_by_side: int, a_multiprocessor: int, tiles_each: int, device: torch.device
) -> int:
    """Rows of partial results: as many as run at a time, with at least `tiles_each` tiles for each of them.

    Where these are too few for every multiprocessor to have one, a program has fewer tiles: bytes of partial
    results, which stay in the cache, cost less than multiprocessors that stand still.

    side_by_side: programs that have a row of partial results together, each some of its columns.
    a_multiprocessor: programs that run on one at a time.
    """
    multiprocessors = hardware.multiprocessors(device)
    most = triton.cdiv(a_multiprocessor * multiprocessors, side_by_side)
    fewest = triton.cdiv(multiprocessors, side_by_side)
    return max(1, min(tiles, most, max(fewest, triton.cdiv(tiles, tiles_each))))


def elements_programs(tiles: int, col_blocks: int, device: torch.device) -> int:
    """Programs that add up rows of `elements_tile`: four of 4 warps a multiprocessor.

    A partial sum is 4 bytes written and 4 read for every 6 x 8 x tile.rows bytes of eight tiles.
    """
    return programs(tiles, col_blocks, 4, 8, device)


def row_programs(tile: RowTile, tiles: int, col_blocks: int, device: torch.device) -> int:
    """Programs that add up rows of a tile: as many as run at a time, four a multiprocessor at most.

    Up to 16 elements a thread take 128 registers and leave room for 16 warps a multiprocessor, more for 8. A
    partial sum is 8 bytes written and 8 read for every 6 x 8 x tile.rows bytes of eight tiles.
    """
    warps = 16 if tile.tiles * tile.rows * tile.cols <= 16 * 32 * tile.num_warps else 8
    return programs(tiles, col_blocks, min(4, max(1, warps // tile.num_warps)), 8, device)


def sample_programs(tile: RowTile, tiles: int, samples: int, device: torch.device) -> int:
    """Programs that add up the tiles of one of some samples, of those that run at a time: 8 warps."""
    most = programs(tiles * samples, 1, min(4, max(1, 8 // tile.num_warps)), 8, device)
    return max(1, min(tiles, most // samples))


def held_rows(rows: int, tile: RowTile, device: torch.device) -> tuple[int, int]:
    """Rows that a program takes at once, at most a tile's, and programs: one a multiprocessor.

    Rows of which there are few are shared out evenly, so that all multiprocessors have some.
    """
    multiprocessors = hardware.multiprocessors(device)
    at_once = min(tile.rows, triton.cdiv(rows, multiprocessors))
    return at_once, min(multiprocessors, triton.cdiv(rows, at_once))


COLUMN_SUMS_WORDS = 2048  # 4 warps x 16


def column_sums_tile(cols: int, device: torch.device) -> RowTile:
    """As wide as leaves a program for three of four multiprocessors, of 256 bytes of a row or 32 at least.

    Few columns take more rows at a time: 1024 are 128 programs that load 256 rows at once. At 64 columns each
    they were 16 that load 32, and of 528 rows each executed 9660 instructions of a warp, now 2504.
    """
    width = 64
    while width > 8 and cols * 4 < width * hardware.multiprocessors(device) * 3:
        width //= 2
    return RowTile(COLUMN_SUMS_WORDS // width, width, 4)
