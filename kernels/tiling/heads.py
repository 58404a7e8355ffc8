"""Tiles of norms of heads: those of queries and keys."""

import math
from typing import NamedTuple

import torch
import triton

from normreg.kernels import dtypes
from normreg.kernels.tiling import hardware, partials
from normreg.kernels.tiling.rows import Rows, RowTile, held, layer_norm_backward_tile, row_tile


class Heads(NamedTuple):
    """Rows of a tensor in the order of memory: `heads` of each token, and how far apart, in elements."""

    rows: int
    heads: int
    stride_token: int
    stride_head: int

    def in_vectors(self, vector: int) -> tuple[int, ...]:
        return self.rows, self.heads, self.stride_token // vector, self.stride_head // vector


def vector(cols: int, *tensors: Heads) -> int:
    """What the size of a head and every stride are multiples of."""
    strides = (stride for heads in tensors for stride in (heads.stride_token, heads.stride_head))
    return hardware.vector(math.gcd(cols, *strides))


def widest(dtype: torch.dtype) -> int:
    """Elements of a head at most: those that the backward holds in one tile."""
    return hardware.TILE_WORDS_BACKWARD // hardware.words_of(dtypes.compute_dtype(dtype)) ** 2


def qk_norm_forward_tile(cols: int, dtype: torch.dtype, twice: bool) -> RowTile:
    """32 words a thread, as LayerNorm's short rows: heads of 64 are 16 a tile of one warp.

    twice: whether x is loaded once more for rotary embedding, which in 16 bits makes 128 registers and 26
    instructions an element, with 16 words 31; and in float32 168 registers, with 16 words 80.
    """
    rows = Rows(1, 1, cols, False)
    words = 16 if twice and dtype.itemsize > 2 else 32
    return held(row_tile(rows, dtypes.compute_dtype(dtype), hardware.TILE_WORDS_FORWARD, words), rows)


def qk_norm_backward_tile(cols: int, dtype: torch.dtype) -> RowTile:
    """LayerNorm's of short rows. dtype: the wider one of x's and dy's."""
    rows = Rows(1, 1, cols, False)
    return held(layer_norm_backward_tile(rows, dtype), rows)


def qk_norm_programs(tile: RowTile, q: Heads, k: Heads, device: torch.device) -> int:
    """Programs of the backward, each of which has tiles of queries and tiles of keys."""
    return partials.row_programs(tile, triton.cdiv(max(q.rows, k.rows), tile.rows), 1, device)
