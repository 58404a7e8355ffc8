"""Device code for channels: which channels and positions of a tensor (N, C, *) a program works on.

A channel's elements are cut into tiles [channels, positions], the positions being some of one sample's or
all of a few samples', and the tiles into splits. Program (i, j) of the grid takes the i-th block of channels
and the tiles of the j-th split. A channels-last tensor is one sample of batch * spatial positions whose
channels are contiguous: other strides, same kernels.

Kernels take pointers of one kind together, as the tuples below. TILE is a `tiling.channels.ChannelTile`.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Elements(NamedTuple):
    """Tensors of a forward with an element for each of x, None where absent."""

    x: Any
    y: Any
    residual: Any = None
    bits: Any = None  # one bit for each element of x


class ElementsBackward(NamedTuple):
    """Tensors of a backward with an element for each of x, None where absent."""

    x: Any
    dy: Any
    dx: Any = None
    residual: Any = None
    bits: Any = None  # as the forward has left them
    dresidual: Any = None


class PerChannel(NamedTuple):
    """Tensors of a forward with a value for each channel, and the count of batches; None where absent."""

    weight: Any = None
    bias: Any = None
    running_mean: Any = None
    running_var: Any = None
    num_batches_tracked: Any = None  # a scalar
    mean: Any = None
    var: Any = None


class PerChannelBackward(NamedTuple):
    """Tensors of a backward with a value for each channel, None where absent."""

    weight: Any
    bias: Any
    mean: Any
    var: Any
    dweight: Any = None
    dbias: Any = None


class Program(NamedTuple):
    """A program's channels, and the sizes and strides of x in elements."""

    channel: Any  # [channels of a tile]
    mask: Any  # of these channels
    block: Any
    samples: Any
    channels: Any
    spatial: Any
    stride_channel: Any
    stride_spatial: Any


class Access(NamedTuple):
    """Where the elements [channels, positions] of a tile are, and how many positions it has."""

    tile: Any
    base: Any
    offsets: Any
    mask: Any
    positions: Any


@triton.jit
def program_channels(samples, channels, spatial, TILE: tl.constexpr, REVERSED: tl.constexpr = False):
    """The `Program`, of sizes of which the contiguous one is in vectors.

    REVERSED: the last program of the previous launch is the first one of this launch.
    """
    block = tl.program_id(0)
    if REVERSED:
        block = tl.num_programs(0) - 1 - block
    return block_channels(block, samples, channels, spatial, TILE)


@triton.jit
def block_channels(block, samples, channels, spatial, TILE: tl.constexpr):
    """The `Program` whose channels are this block of them."""
    if TILE.channels_last:
        channels = channels * TILE.vector
        stride_channel = 1
        stride_spatial = channels
    else:
        spatial = spatial * TILE.vector
        stride_channel = spatial
        stride_spatial = 1
    channel = block * TILE.channels + tl.arange(0, TILE.channels)
    mask = channel < channels
    return Program(channel, mask, block, samples, channels, spatial, stride_channel, stride_spatial)


@triton.jit
def program_tiles(tiles, tiles_per_split, REVERSED: tl.constexpr = False):
    """First and past-the-last tile of this program's split."""
    split = tl.program_id(1)
    if REVERSED:
        split = tl.num_programs(1) - 1 - split
    first = split * tiles_per_split
    return first, tl.minimum(first + tiles_per_split, tiles)


@triton.jit
def program_rows(samples, channels, spatial, tiles, tiles_per_split, TILE: tl.constexpr):
    """The `Program`, its channels among the rows that have statistics of their own, their number, its tiles.

    Rows are channels, in channels-last format channels of each sample: the programs of one sample follow
    those of another, and so do its tiles.
    """
    first, last = program_tiles(tiles, tiles_per_split)
    if TILE.channels_last:
        blocks = tl.cdiv(channels * TILE.vector, TILE.channels)
        sample = tl.program_id(0) // blocks
        program = block_channels(tl.program_id(0) % blocks, samples, channels, spatial, TILE)
        span = sample * tiles + first, sample * tiles + last
        return program, sample * program.channels + program.channel, samples * program.channels, span
    else:
        program = program_channels(samples, channels, spatial, TILE)
        return program, program.channel, program.channels, (first, last)


@triton.jit
def is_short(tile, program, TILE: tl.constexpr):
    """Whether a tile is the last of several of a sample, which may have few positions."""
    tiles_per_sample = tl.cdiv(program.spatial, TILE.spatial)
    return (tiles_per_sample > 1) & ((tile + 1) % tiles_per_sample == 0)


@triton.jit
def tile_access(tile, program, TILE: tl.constexpr):
    """The `Access` of the program's channels at a tile."""
    sizes = program.channels, program.spatial, program.stride_channel, program.stride_spatial
    VECTORS: tl.constexpr = (TILE.vector, 1) if TILE.channels_last else (1, TILE.vector)
    return block_access(tile, program, sizes, TILE.samples, TILE.channels, TILE.spatial, VECTORS)


@triton.jit
def block_access(
    tile,
    program,
    sizes,
    BLOCK_SAMPLES: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_SPATIAL: tl.constexpr,
    VECTORS: tl.constexpr,  # channels, spatial: what the sizes are multiples of
):
    channels, spatial, stride_channel, stride_spatial = sizes
    tiles_per_sample = tl.cdiv(spatial, BLOCK_SPATIAL)
    first_sample = tile // tiles_per_sample * BLOCK_SAMPLES
    first_channel = program.block * BLOCK_CHANNELS
    first_spatial = tile % tiles_per_sample * BLOCK_SPATIAL
    base = first_sample.to(tl.int64) * channels * spatial
    base += first_channel.to(tl.int64) * stride_channel + first_spatial.to(tl.int64) * stride_spatial

    channel = tl.arange(0, BLOCK_CHANNELS)[:, None]
    position = tl.arange(0, BLOCK_SAMPLES * BLOCK_SPATIAL)[None, :]
    vector = position // VECTORS[1]
    offsets = channel * stride_channel
    positions = tl.minimum(spatial - first_spatial, BLOCK_SPATIAL)
    if BLOCK_SAMPLES > 1:
        sample = position // BLOCK_SPATIAL
        vector = vector % (BLOCK_SPATIAL // VECTORS[1])
        position = position % BLOCK_SPATIAL
        offsets += sample * channels * spatial
        positions *= tl.minimum(program.samples - first_sample, BLOCK_SAMPLES)
    offsets += position * stride_spatial
    mask = channel // VECTORS[0] < (channels - first_channel) // VECTORS[0]
    mask &= vector < (spatial - first_spatial) // VECTORS[1]
    if BLOCK_SAMPLES > 1:  # one comparison for each sample of a thread
        mask = sample < tl.where(mask, program.samples - first_sample, 0)
    return Access(tile, base, offsets, mask, positions)


@triton.jit
def load_tile(ptr, access, DTYPE: tl.constexpr):
    return tl.load(ptr + access.base + access.offsets, mask=access.mask, other=0.0).to(DTYPE)


@triton.jit
def store_tile(ptr, access, value):
    tl.store(ptr + access.base + access.offsets, value.to(ptr.dtype.element_ty), mask=access.mask)
