"""Device code for bits: a flag for each element of x, eight contiguous ones in a byte."""

import triton
import triton.language as tl

from normreg.kernels.device.channels import block_access, load_tile, store_tile


@triton.jit
def bits_access(tile, program, TILE: tl.constexpr):
    """The `Access` of the bytes of a tile's bits."""
    VECTORS: tl.constexpr = (1, 1)
    if TILE.channels_last:
        channels = tl.cdiv(program.channels, 8)
        sizes = channels, program.spatial, 1, channels
        access = block_access(
            tile, program, sizes, TILE.samples, (TILE.channels + 7) // 8, TILE.spatial, VECTORS
        )
    else:
        spatial = tl.cdiv(program.spatial, 8)
        sizes = program.channels, spatial, spatial, 1
        access = block_access(
            tile, program, sizes, TILE.samples, TILE.channels, (TILE.spatial + 7) // 8, VECTORS
        )
    return access


@triton.jit
def store_bits(ptr, flags, tile, program, TILE: tl.constexpr):
    """Stores the flags [channels, positions] of a tile."""
    CHANNELS: tl.constexpr = TILE.channels
    POSITIONS: tl.constexpr = TILE.samples * TILE.spatial
    bits = flags.to(tl.int32)
    if TILE.channels_last:
        A_BYTE: tl.constexpr = min(8, CHANNELS)
        place = tl.arange(0, A_BYTE)[None, :, None]
        bits = tl.sum(tl.reshape(bits, (CHANNELS // A_BYTE, A_BYTE, POSITIONS)) << place, 1)
    else:
        A_BYTE: tl.constexpr = min(8, TILE.spatial)
        place = tl.arange(0, A_BYTE)[None, None, :]
        bits = tl.sum(tl.reshape(bits, (CHANNELS, POSITIONS // A_BYTE, A_BYTE)) << place, 2)
    store_tile(ptr, bits_access(tile, program, TILE), bits)


@triton.jit
def load_bits(ptr, tile, program, TILE: tl.constexpr):
    """The flags [channels, positions] that `store_bits` has stored, whatever its tiles were."""
    CHANNELS: tl.constexpr = TILE.channels
    POSITIONS: tl.constexpr = TILE.samples * TILE.spatial
    bits = load_tile(ptr, bits_access(tile, program, TILE), tl.int32)
    if TILE.channels_last:
        A_BYTE: tl.constexpr = min(8, CHANNELS)
        bits = bits[:, None, :] >> tl.arange(0, A_BYTE)[None, :, None]
    else:
        A_BYTE: tl.constexpr = min(8, TILE.spatial)
        bits = bits[:, :, None] >> tl.arange(0, A_BYTE)[None, None, :]
    return tl.reshape(bits & 1, (CHANNELS, POSITIONS)) != 0
