"""Device code for count, mean and m2 of channels: of a tile, of tiles that are added up, of splits.

Everything is relative to a mean, never to one element, which may be an outlier. The formulas are in
`statistics`.
"""

import triton
import triton.language as tl

from normreg.kernels.device.channels import is_short, load_tile, tile_access
from normreg.kernels.device.per_channel import load_partials
from normreg.kernels.device.statistics import Mean, divide, merge_moments, rounded_mean, sum_of, two_sums


@triton.jit
def less(x, value, mask):
    """x less a value for each channel, and 0 where there is no element: there x is 0."""
    return x - tl.where(mask, value[:, None], 0.0)


@triton.jit
def shift_of(x, mask, count):
    """The mean of each channel of x but for rounding, and for less where its square would overflow."""
    shift = rounded_mean(x, count, 1)
    if tl.max(tl.abs(shift), 0) > 1e20:
        shift += rounded_mean(less(x, shift, mask), count, 1)
    return shift


@triton.jit
def added(x, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Sums of WIDTH positions of x [channels, positions] that a thread has, [channels, positions / WIDTH]."""
    CHANNELS: tl.constexpr = x.shape[0]
    SUMS: tl.constexpr = x.shape[1] // WIDTH
    if SUMS == 0:
        return x
    elif TILE.vector >= WIDTH and not TILE.channels_last:
        return tl.sum(tl.reshape(x, (CHANNELS, SUMS, WIDTH)), 2)
    else:
        return tl.sum(tl.reshape(x, (CHANNELS, WIDTH, SUMS)), 1)


@triton.jit
def fours(x, TILE: tl.constexpr):
    return added(x, 4, TILE)


@triton.jit
def eights(x, LOADED: tl.constexpr, TILE: tl.constexpr):
    """Sums of two of `fours` where a thread has eight neighbours, else these: half the pairs to add to."""
    sums = fours(x, TILE)
    if TILE.vector == 8 and LOADED.primitive_bitwidth == 16 and not TILE.channels_last:
        sums = added(sums, 2, TILE)
    return sums


@triton.jit
def add_squares(high, low, squares):
    """high + low + squares as such a pair, by Dekker's fast two-sum: no rounding of it hides an outlier's."""
    total = high + squares
    return total, low + (squares - (total - high))


@triton.jit
def in_units(high, low):
    """high + low [channels, sums] as pairs whose high parts' sum over a channel is exact.

    They are multiples of one number, of which no sum takes more than 2^24.
    """
    large = 2.0 * tl.sum(high, 1)[:, None]
    large = tl.where(2.0 * large < float("inf"), large, 0.0)
    multiple = (high + large) - large
    return multiple, low + (high - multiple)


@triton.jit
def low_and_m2(total, high, low, count, AXIS: tl.constexpr):
    """What the mean lacks, and m2, of sums of d, and of d^2 as pairs, along AXIS."""
    total = tl.sum(total, AXIS)
    mean = divide(total, count)
    m2 = tl.sum(high, AXIS) + (tl.sum(low, AXIS) - total * mean)
    return mean, tl.where(m2 < 0.0, 0.0, m2)


@triton.jit
def tile_moments(x, mask, count, TILE: tl.constexpr):
    """Mean and m2 of each channel of a tile that holds all of it."""
    high = shift_of(x, mask, count)
    d = less(x, high, mask)
    total, squares = two_sums(fours(d, TILE), fours(d * d, TILE), 1)
    low = divide(total, count)
    m2 = squares - total * low
    return sum_of(high, low), tl.where(m2 < 0.0, 0.0, m2)


@triton.jit
def tiles_moments(x_ptr, program, first_tile, last_tile, DTYPE: tl.constexpr, TILE: tl.constexpr):
    """Count, mean and m2 of each channel in the tiles from the first to before the last.

    Four or eight elements of a tile have sums of their own, of deviations from the mean of one tile. That is
    the first one, or the second where the first is short, whose mean an outlier would move too far.
    """
    start = first_tile
    if last_tile - first_tile > 1 and is_short(first_tile, program, TILE):
        start += 1
    access = tile_access(start, program, TILE)
    x, count = load_tile(x_ptr, access, DTYPE), access.positions
    shift = shift_of(x, access.mask, count)
    d = less(x, shift, access.mask)
    total = fours(d, TILE)
    high = eights(d * d, x_ptr.dtype.element_ty, TILE)
    low = tl.zeros_like(high)
    for step in range(1, last_tile - first_tile):
        tile = start + step
        access = tile_access(tl.where(tile == last_tile, first_tile, tile), program, TILE)
        d = less(load_tile(x_ptr, access, DTYPE), shift, access.mask)
        total += fours(d, TILE)
        high, low = add_squares(high, low, eights(d * d, x_ptr.dtype.element_ty, TILE))
        count += access.positions
    if not TILE.channels_last:  # where torch's sums are in float64
        high, low = in_units(high, low)
    mean, m2 = low_and_m2(total, high, low, count, 1)
    return count, Mean(shift, mean), m2


@triton.jit
def split_moments(x_ptr, program, tiles, DTYPE: tl.constexpr, TILE: tl.constexpr):
    """Count, mean and m2 of each channel in a split's tiles, of which TILE.tiles are added up at once."""
    first_tile, last_tile = tiles
    count = tl.full([], 0.0, DTYPE)
    origin = tl.zeros(program.channel.shape, DTYPE)
    mean = tl.zeros(program.channel.shape, DTYPE)  # relative to the origin
    m2 = tl.zeros(program.channel.shape, DTYPE)
    for first in range(first_tile, last_tile, TILE.tiles):
        last = tl.minimum(first + TILE.tiles, last_tile)
        of_tiles, tiles_mean, tiles_m2 = tiles_moments(x_ptr, program, first, last, DTYPE, TILE)
        if first == first_tile:
            origin = tiles_mean.high
        tiles_mean = (tiles_mean.high - origin) + tiles_mean.low
        count, mean, m2 = merge_moments(count, mean, m2, of_tiles.to(DTYPE), tiles_mean, tiles_m2)
    return count, sum_of(origin, mean), m2


@triton.jit
def merged_moments(ptr, channel, mask, splits, channels, count, BLOCK_SPLITS: tl.constexpr):
    """Mean and m2 of each channel, of [count, high, low and m2, splits, channels]; count: over the splits."""
    DTYPE: tl.constexpr = ptr.dtype.element_ty
    origin = tl.load(
        ptr + splits.to(tl.int64) * channels + channel, mask=mask & (channel * 0 < splits), other=0.0
    )
    first_channel = tl.zeros([1], tl.int32)  # a count is the same of all
    totals = tl.zeros([BLOCK_SPLITS, channel.shape[0]], DTYPE)
    squares = tl.zeros([BLOCK_SPLITS, channel.shape[0]], DTYPE)
    squares_low = tl.zeros([BLOCK_SPLITS, channel.shape[0]], DTYPE)
    for first in range(0, splits, BLOCK_SPLITS):
        counts = load_partials(
            ptr, 0, first, first_channel, first_channel == 0, splits, channels, BLOCK_SPLITS
        )
        totals, squares, squares_low = add_partials(
            (totals, squares, squares_low),
            counts,
            origin[None, :],
            ptr,
            first,
            channel,
            mask,
            splits,
            channels,
            BLOCK_SPLITS,
        )
    low, m2 = low_and_m2(totals, squares, squares_low, count, 0)
    return sum_of(origin, low), m2


@triton.jit
def add_partials(
    sums, counts, origin, ptr, first, channel, mask, splits, channels, BLOCK_SPLITS: tl.constexpr
):
    """The sums of d, and of d^2 as pairs, with those of BLOCK_SPLITS splits; d is relative to the origin."""
    totals, squares, squares_low = sums
    high = load_partials(ptr, 1, first, channel, mask, splits, channels, BLOCK_SPLITS)
    low = load_partials(ptr, 2, first, channel, mask, splits, channels, BLOCK_SPLITS)
    m2 = load_partials(ptr, 3, first, channel, mask, splits, channels, BLOCK_SPLITS)
    d = (high - origin) + low
    squares, squares_low = add_squares(squares, squares_low, m2 + counts * d * d)
    return totals + counts * d, squares, squares_low


@triton.jit
def merged_group_moments(ptr, first_channel, group_channels, splits, channels, count, BLOCK: tl.constexpr):
    """Mean and m2 of adjacent channels together, whose means may be far apart: relative to that of these.

    BLOCK: splits and channels that are merged at a time.
    """
    DTYPE: tl.constexpr = ptr.dtype.element_ty
    SPLITS: tl.constexpr = BLOCK[0]
    CHANNELS: tl.constexpr = BLOCK[1]
    PARTIALS: tl.constexpr = SPLITS * CHANNELS
    origin = tl.load(ptr + splits.to(tl.int64) * channels + first_channel)
    shift = tl.zeros([SPLITS, CHANNELS], DTYPE)
    for start in range(0, group_channels, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        mask = channel < group_channels
        for first in range(0, splits, SPLITS):
            place = first_channel + channel
            counts = load_partials(ptr, 0, first, place, mask, splits, channels, SPLITS)
            high = load_partials(ptr, 1, first, place, mask, splits, channels, SPLITS)
            shift += counts / count.to(DTYPE) * (high - origin)
    origin += tl.sum(tl.reshape(shift, [PARTIALS]), 0)

    totals = tl.zeros([SPLITS, CHANNELS], DTYPE)
    squares = tl.zeros([SPLITS, CHANNELS], DTYPE)
    squares_low = tl.zeros([SPLITS, CHANNELS], DTYPE)
    for start in range(0, group_channels, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        mask = channel < group_channels
        for first in range(0, splits, SPLITS):
            place = first_channel + channel
            counts = load_partials(ptr, 0, first, place, mask, splits, channels, SPLITS)
            totals, squares, squares_low = add_partials(
                (totals, squares, squares_low),
                counts,
                origin,
                ptr,
                first,
                place,
                mask,
                splits,
                channels,
                SPLITS,
            )
    totals = tl.reshape(totals, [PARTIALS])
    squares, squares_low = tl.reshape(squares, [PARTIALS]), tl.reshape(squares_low, [PARTIALS])
    low, m2 = low_and_m2(totals, squares, squares_low, count, 0)
    return sum_of(origin, low), m2
