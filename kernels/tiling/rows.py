"""Tiles of operations over rows: LayerNorm, RMSNorm, and dropout and a sum before them."""

import math
from typing import NamedTuple

import torch
import triton

from normreg.kernels import dtypes
from normreg.kernels.tiling import hardware


class Rows(NamedTuple):
    """How a tensor is seen as [samples, rows, cols]."""

    samples: int
    rows: int
    cols: int
    channels_first: bool
    stride: int | None = None  # of elements from a row of the input to the next; None where it is cols

    @classmethod
    def of(
        cls, shape: torch.Size, cols: int, channels_first: bool = False, stride: int | None = None
    ) -> "Rows":
        """Rows of the last `cols` elements, or of the channels of positions of a channels-first tensor."""
        if channels_first:
            return cls(shape[0], shape[2:].numel(), cols, True)
        return cls(1, shape.numel() // cols, cols, False, stride)

    @property
    def count(self) -> int:
        return self.samples * self.rows

    @property
    def vector(self) -> int:
        return hardware.vector(self.rows if self.channels_first else math.gcd(self.cols, self.stride or 0))

    def in_vectors(self) -> tuple[int, int]:
        """rows and cols as kernels take them: the contiguous one divided by `vector`."""
        if self.channels_first:
            return self.rows // self.vector, self.cols
        return self.rows, self.cols // self.vector

    def stride_in_vectors(self) -> int | None:
        return None if self.stride is None else self.stride // self.vector

    def tiles(self, tile: "RowTile") -> int:
        """How many tiles the rows are, each as wide as a row."""
        return self.samples * triton.cdiv(self.rows, tile.rows)

    def constants(self, tile: "RowTile", vector: int | None = None) -> dict[str, object]:
        """The tile as kernels take it, and its warps. vector: of strides as well, where there are others."""
        whole = self.cols % (tile.tiles * tile.cols) == 0
        return dict(TILE=tile._replace(vector=vector or self.vector, whole=whole), num_warps=tile.num_warps)


class RowTile(NamedTuple):
    """What a program holds at once, as kernels are compiled for it."""

    rows: int
    cols: int
    num_warps: int
    tiles: int = 1  # number of tiles a row is split into, held side by side, each of cols
    packed: bool = False  # whether two elements of 16 bits are held in a word
    stages: int = 1  # of a loop over tiles: with 3 two are being copied while one is computed
    vector: int = 1  # what the contiguous size is a multiple of, which kernels take divided by it
    whole: bool = False  # whether all columns of all tiles are within the row

    def covers(self, rows: Rows) -> bool:
        """Whether a row is held at once."""
        return self.tiles * self.cols >= rows.cols


CHUNK_WORDS = 4096  # of a wider row: 8 warps x 16 words
THREAD_COLS = 8  # elements a thread of each of a row's tiles: 16 bytes in 16 bits
# Bytes of one row that the forward holds in tiles: 32 words a thread, of 64 registers at 32 warps.
TILES_BYTES_FORWARD = 131072
TILES_UNPACKED = 32768  # elements; with more those of 16 bits stay packed
# Bytes of one row that is held in tiles of float32 for a result in float8: 64 of 128 registers a thread of 16
# bits. 32768 elements of 32 bits spill 32 bytes on sm_100.
FLOAT8_BYTES = 65536
# Columns of 16 bits that the backward holds in tiles with one column sum or, centred, two: 160 and 192
# registers a thread, of 255 at 8 warps. RMSNorm's 24576 spill 8 bytes on sm_100, 12288 of 32 bits 32.
TILES_COLS_BACKWARD = {False: 20480, True: 16384}
TILES_WARPS_BACKWARD = 8
# Warps and tiles of a program that holds column sums of wide rows: two of 12288 columns are 96 of 255
# registers, and of 16384 without masks 128; one of 24576 is 48 of 128. Of 32 bits 16384 spill.
WIDE_WARPS = {False: 16, True: 8}  # by whether rows are centred
WIDE_TILES = {(False, 2): 6, (False, 4): 3, (True, 2): 6, (True, 4): 6}  # and by bytes of an element
WIDE_TILES_WHOLE = 8
MOST_POSITIONS = 64  # of a channels-first tile: 128 bytes in 16 bits
FEWEST_POSITIONS = 8  # 16 bytes in 16 bits: an access of one thread


def row_tile(rows: Rows, compute_dtype: torch.dtype, held_words: int, words_per_thread: int) -> RowTile:
    """Several rows of one warp each where a row is short, one row over several warps where not."""
    words = hardware.words_of(compute_dtype)
    if rows.cols * words > held_words:
        return layer_norm_chunk_tile(rows, compute_dtype)
    block_cols = triton.next_power_of_2(rows.cols)
    block_rows = max(1, hardware.WARP_TILE // (block_cols * words)) * hardware.tile_scale()
    num_warps = min(32, max(1, block_rows * block_cols * words // (32 * words_per_thread)))
    return RowTile(block_rows, block_cols, num_warps)


def held(tile: RowTile, rows: Rows) -> RowTile:
    """The tile, which has to hold a row: raises ValueError where it does not."""
    if not tile.covers(rows):
        raise ValueError(
            f"expected rows that a program holds, got {rows.cols} elements: call the function of "
            f"normreg.functional, which takes other operators for these"
        )
    return tile


def layer_norm_chunk_tile(rows: Rows, compute_dtype: torch.dtype) -> RowTile:
    """One chunk of rows too wide to be held."""
    elements = CHUNK_WORDS // hardware.words_of(compute_dtype)
    return RowTile(32, elements // 32, 8) if rows.channels_first else RowTile(1, elements, 8)


def _at_16_bytes(rows: Rows, dtype: torch.dtype) -> bool:
    """Whether every row starts at a multiple of 16 bytes."""
    return rows.vector * dtype.itemsize >= 16


def row_in_tiles(rows: Rows, num_warps: int, packed: bool) -> RowTile:
    """One row in several tiles, 8 elements of each a thread."""
    cols = num_warps * 32 * THREAD_COLS
    return RowTile(1, cols, num_warps, triton.cdiv(rows.cols, cols), packed)


def _channels_first_tile(
    rows: Rows, compute_dtype: torch.dtype, held_words: int, words_per_thread: int
) -> RowTile:
    """Positions, which are contiguous, times all channels where these can be held, else times some."""
    words = hardware.words_of(compute_dtype)
    block_cols = triton.next_power_of_2(rows.cols)
    block_rows = min(MOST_POSITIONS, held_words // words // block_cols, triton.next_power_of_2(rows.rows))
    if block_rows < min(FEWEST_POSITIONS, rows.rows):
        return layer_norm_chunk_tile(rows, compute_dtype)
    num_warps = min(32, max(1, block_rows * block_cols * words // (32 * words_per_thread)))
    return RowTile(block_rows, block_cols, num_warps)


def layer_norm_forward_tile(rows: Rows, dtype: torch.dtype) -> RowTile:
    held_as = dtypes.compute_dtype(dtype)
    if rows.channels_first:
        # sums over channels go through as many lanes and warps as share a position: LayerNorm2d of 96 in 16
        # bits takes 25 instructions an element, and 48 with 16 words a thread
        return _channels_first_tile(rows, held_as, hardware.TILE_WORDS_FORWARD, 64)
    # 32 words a thread spill on sm_80 where the row has 16384
    words_per_thread = 32 if rows.cols * hardware.words_of(held_as) <= 8192 else 16
    tile = row_tile(rows, held_as, hardware.TILE_WORDS_FORWARD, words_per_thread)
    return forward_in_tiles(tile, rows, dtype)


def forward_in_tiles(tile: RowTile, rows: Rows, dtype: torch.dtype) -> RowTile:
    """Several tiles for a row that has a program for itself and can be held in them; else the tile.

    float64 would spill, as would loads that are not as wide as can be.
    """
    held = rows.cols * dtype.itemsize <= TILES_BYTES_FORWARD and dtype.itemsize <= 4
    if tile.rows > 1 or not held or not _at_16_bytes(rows, dtype):
        return tile
    # 1025 to 2048 elements a warp, 256 of each tile: LayerNorm of 4096 in 16 bits takes 15 instructions an
    # element, and 17 with 1024 elements a warp
    num_warps = 1 << min(5, max(0, (rows.cols - 1).bit_length() - 11))
    return row_in_tiles(rows, num_warps, dtype.itemsize == 2 and rows.cols > TILES_UNPACKED)


def float8_is_held(cols: int, dtype: torch.dtype) -> bool:
    """Whether a program holds a row whose result is float8, if need be of a contiguous copy."""
    in_bytes, words = cols * dtype.itemsize, hardware.words_of(dtypes.compute_dtype(dtype))
    in_tiles = words == 1 and in_bytes <= min(FLOAT8_BYTES, TILES_BYTES_FORWARD) and in_bytes % 16 == 0
    return cols * words <= hardware.TILE_WORDS_FORWARD or in_tiles


def layer_norm_float8_tile(rows: Rows, dtype: torch.dtype) -> RowTile:
    """The forward's, but never packed."""
    return layer_norm_forward_tile(rows, dtype)._replace(packed=False)


def layer_norm_backward_tile(rows: Rows, dtype: torch.dtype, centered: bool = True) -> RowTile:
    """A tile of the backward. dtype: the wider one of x's and dy's."""
    # two tiles are loaded and two accumulated: half the words a thread of the forward, and a quarter where
    # there are rows to sum over at the end, or temporaries of float64
    held_as = dtypes.compute_dtype(dtype)
    held_words = hardware.TILE_WORDS_BACKWARD // hardware.words_of(held_as)
    if rows.channels_first:
        return _channels_first_tile(rows, held_as, held_words, 32)  # 254 registers; 64 words spill
    several_rows = triton.next_power_of_2(rows.cols) < hardware.WARP_TILE
    words_per_thread = 8 if several_rows or dtype == torch.float64 else 16
    tile = row_tile(rows, held_as, held_words, words_per_thread)
    if tile.covers(rows):
        return tile._replace(stages=backward_stages(rows, dtype))
    if dtype.itemsize == 2 and rows.cols <= TILES_COLS_BACKWARD[centered] and _at_16_bytes(rows, dtype):
        return row_in_tiles(rows, TILES_WARPS_BACKWARD, packed=True)
    return tile


def layer_norm_backward_wide_tile(rows: Rows, dtype: torch.dtype, centered: bool) -> RowTile | None:
    """The tiles whose column sums a program holds, those of a wide row or of half; None where these are more.

    A third program that adds up the whole row would read more from the cache than is spared of memory.
    """
    if rows.channels_first or dtype == torch.float64 or not _at_16_bytes(rows, dtype):
        return None
    num_warps, most = WIDE_WARPS[centered], WIDE_TILES[centered, dtype.itemsize]
    cols = num_warps * 32 * THREAD_COLS
    if centered and dtype.itemsize == 2 and rows.cols == 2 * WIDE_TILES_WHOLE * cols:
        most = WIDE_TILES_WHOLE
    if rows.cols > 2 * most * cols:
        return None
    share = triton.cdiv(rows.cols, triton.cdiv(rows.cols, most * cols))
    tiles = triton.cdiv(share, cols)
    # 24 to 64 KiB of x and dy in 16 bits are on their way at a time
    return RowTile(1, cols, num_warps, tiles, stages=4 if tiles % 4 == 0 else 3)


def layer_norm_backward_held_tile(rows: Rows, dtype: torch.dtype) -> RowTile | None:
    """Rows of 16 bits side by side over all warps of a program, in two tiles, or three where these fit more
    closely; None where rows are not so long that they are one in a tile, or too long.

    Two tiles are 16 elements a thread: two column sums, x_hat, wdy and the weight are 80 of 128 registers at
    16 warps. Three are 120, of 255 at 8 warps. Either way a multiprocessor runs one program.
    """
    block_cols = triton.next_power_of_2(rows.cols)
    of_one = hardware.WARP_TILE <= block_cols <= hardware.TILE_WORDS_BACKWARD
    if rows.channels_first or dtype.itemsize != 2 or not of_one or not _at_16_bytes(rows, dtype):
        return None
    tiles, num_warps = (3, 8) if rows.cols <= block_cols // 4 * 3 else (2, 16)
    cols = block_cols // (2 if tiles == 2 else 4)
    block_rows = num_warps * 32 * THREAD_COLS // cols * hardware.tile_scale()
    packed = tiles == 2 and tiles * cols != rows.cols  # the weight: masks take registers, too
    return RowTile(block_rows, cols, num_warps, tiles, packed, backward_stages(rows, dtype))


def backward_stages(rows: Rows, dtype: torch.dtype) -> int:
    # The second of 2 stages would only wait for the copy that ends the first. 3 stages of 16 bits take 128
    # registers, all there are for 16 warps, and 65 KiB of shared memory at most; of float32 they take 153 or
    # spill, as do rows that cannot be copied 4 bytes at a time.
    return 3 if dtype.itemsize == 2 and _at_16_bytes(rows, dtype) else 1


def dropout_add_norm_forward_tile(rows: Rows, dtype: torch.dtype) -> RowTile:
    # two tiles are loaded and a mask is drawn: half the words a thread of layer_norm
    tile = row_tile(rows, dtypes.compute_dtype(dtype), hardware.TILE_WORDS_FORWARD, 16)
    return _at_least_a_call(forward_in_tiles(tile, rows, dtype))


def dropout_add_norm_backward_tile(rows: Rows, compute_dtype: torch.dtype) -> RowTile:
    held_words = hardware.TILE_WORDS_BACKWARD // hardware.words_of(compute_dtype)
    return _at_least_a_call(row_tile(rows, compute_dtype, held_words, 16))


def dropout_add_norm_backward_parameters_tile() -> RowTile:
    return RowTile(16, 128, 8)  # 8 elements a thread: a third sum and a mask beside layer_norm's


def _at_least_a_call(tile: RowTile) -> RowTile:
    """The tile, at least 8 elements wide: as many are decided by one Philox call."""
    return tile._replace(rows=max(1, tile.rows * tile.cols // 8), cols=8) if tile.cols < 8 else tile


def layer_norm_backward_parameters_tile(rows: Rows, dtype: torch.dtype) -> RowTile:
    # 256 bytes of each row in 16 bits, or 128 bytes of each channel; 16 elements a thread
    if rows.channels_first:
        return RowTile(64, 32, 4)
    return RowTile(16, 128, 4, stages=backward_stages(rows, dtype))
