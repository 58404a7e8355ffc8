"""GroupNorm of groups that fit into a tile: a program reads all elements of its groups once.

The formulas are in `group_norm`. A tile has several groups of one warp each where they are small: adjacent
ones of a sample, then the same ones of several samples.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from normreg.kernels.device.activations import activate, activation_backward
from normreg.kernels.device.rows import Parameters, load_mean, load_spread, store_statistics
from normreg.kernels.device.statistics import (
    Mean,
    Std,
    compute_dtype,
    divide,
    divide_by_std,
    exact_std,
    rounded_mean,
    rstd_of,
    sum_of_squares,
    two_sums,
)


class GroupAccess(NamedTuple):
    """Where the rows of a tile are, and their elements [rows, channels, spatial].

    The contiguous dimension is the last: in channels-last format they are [rows, spatial, channels].
    """

    first_row: Any  # of [samples, groups]
    row: Any  # from the first one
    row_mask: Any
    base: Any
    offsets: Any
    mask: Any


@triton.jit
def in_elements(groups, channels, spatial, TILE: tl.constexpr):
    """The sizes, of which the contiguous one is in vectors."""
    if not TILE.channels_last:
        spatial = spatial * TILE.vector
    elif TILE.channels == 1:
        groups = groups * TILE.vector
    else:
        channels = channels * TILE.vector
    if TILE.spatial == 1:
        spatial = 1
    elif TILE.channels == 1:
        channels = 1
    return groups, channels, spatial


@triton.jit
def program_groups(group_block, TILE: tl.constexpr):
    """The first group of a block, and the sample and the group of each row."""
    row = tl.arange(0, TILE.samples * TILE.groups)
    return group_block.to(tl.int64) * TILE.groups, row // TILE.groups, row % TILE.groups


@triton.jit
def of_channels(value, TILE: tl.constexpr):
    """[rows, channels] as what a tile of elements is combined with."""
    return value[:, None, :] if TILE.channels_last else value[:, :, None]


@triton.jit
def tile_access(
    first_sample, first_group, sample, group, samples, groups, channels, spatial, TILE: tl.constexpr
):
    """Where the rows of a tile and their elements are.

    Rows are (sample, group) of the tile; offsets are from base.
    """
    row_mask = (first_sample + sample < samples) & (first_group + group < groups)
    row = sample * groups + group
    first_row = first_sample * groups + first_group
    channel = of_channels(tl.arange(0, TILE.channels)[None, :], TILE)
    position = tl.arange(0, TILE.spatial)
    position = position[None, :, None] if TILE.channels_last else position[None, None, :]
    mask = row_mask[:, None, None] & (channel < channels) & (position < spatial)
    if TILE.channels_last:
        stride = groups * channels
        base = first_sample * spatial * stride + first_group * channels
        start = sample * spatial * stride + group * channels
        offsets = start[:, None, None] + channel + position * stride
    else:
        base = first_row * channels * spatial
        start = row * channels * spatial
        offsets = start[:, None, None] + channel * spatial + position
    return GroupAccess(first_row, row, row_mask, base, offsets, mask)


@triton.jit
def load_parameter(ptr, group, channels, groups_left, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """A parameter of each channel of a tile, of [groups, channels], which ptr is in."""
    channel = tl.arange(0, TILE.channels)[None, :]
    mask = (group < groups_left)[:, None] & (channel < channels)
    value = tl.load(ptr + group[:, None] * channels + channel, mask=mask, other=0.0)
    return of_channels(value.to(DTYPE), TILE)


@triton.jit(do_not_specialize=["samples", "groups", "channels", "spatial"])
def group_norm_forward_kernel(
    x_ptr,  # [samples, groups, channels, spatial], channels-last [samples, spatial, groups, channels]
    y_ptr,
    parameters: Parameters,  # [groups, channels] or None
    statistics_ptr,  # [samples, groups, 3] or None
    samples,
    groups,
    channels,
    spatial,
    eps: tl.float64,
    negative_slope: tl.float64,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
):
    DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty)
    ROWS: tl.constexpr = TILE.samples * TILE.groups
    ELEMENTS: tl.constexpr = TILE.channels * TILE.spatial
    LAST: tl.constexpr = TILE.channels_last and TILE.spatial > 1
    groups, channels, spatial = in_elements(groups, channels, spatial, TILE)
    group_blocks = tl.cdiv(groups, TILE.groups)
    first_sample = (tl.program_id(0) // group_blocks).to(tl.int64) * TILE.samples
    first_group, sample, group = program_groups(tl.program_id(0) % group_blocks, TILE)
    at = tile_access(first_sample, first_group, sample, group, samples, groups, channels, spatial, TILE)

    x = tl.load(x_ptr + at.base + at.offsets, mask=at.mask, other=0.0).to(DTYPE)
    if LAST:  # Triton 3.6 compiles sums over such elements wrongly where they are reshaped
        SHARE: tl.constexpr = 1.0 / ELEMENTS
        count = (channels * spatial).to(DTYPE)
        high = divide(tl.sum(tl.sum(x * SHARE, 2), 1), count * SHARE)
    else:
        high = rounded_mean(tl.reshape(x, [ROWS, ELEMENTS]), channels * spatial, 1)
    d = tl.where(at.mask, x - high[:, None, None], 0.0)
    total = tl.sum(tl.sum(d, 2), 1) if LAST else tl.sum(tl.reshape(d, [ROWS, ELEMENTS]), 1)
    low = divide(total, channels * spatial)
    d = tl.where(at.mask, d - low[:, None, None], 0.0)
    if LAST:
        squares = tl.sum(tl.sum(d * d, 2), 1)
    else:
        squares = sum_of_squares(tl.reshape(d, [ROWS, ELEMENTS]))
    var = divide(squares, channels * spatial)
    std = exact_std(var, eps)
    std = Std(std.value[:, None, None], std.error[:, None, None])
    parameter = first_group * channels
    left = groups - first_group
    weight = tl.full([1, 1, 1], 1.0, DTYPE)
    if parameters.weight is not None:
        weight = load_parameter(parameters.weight + parameter, group, channels, left, TILE, DTYPE)
    scale = divide_by_std(weight, std) if TILE.channels == 1 else divide(weight, std.value)
    z = d * scale
    if parameters.bias is not None:
        z += load_parameter(parameters.bias + parameter, group, channels, left, TILE, DTYPE)
    y = activate(z, negative_slope, ACT, y_ptr.dtype.element_ty)

    tl.store(y_ptr + at.base + at.offsets, y.to(y_ptr.dtype.element_ty), mask=at.mask)
    store_statistics(statistics_ptr, Mean(high, low), var, at.first_row + at.row, at.row_mask)


@triton.jit(do_not_specialize=["samples", "groups", "channels", "spatial"])
def group_norm_backward_kernel(
    dy_ptr,  # [samples, groups, channels, spatial], channels-last [samples, spatial, groups, channels]
    x_ptr,
    dx_ptr,  # or None
    parameters: Parameters,  # [groups, channels] or None; bias is used where there is an activation
    statistics_ptr,  # [samples, groups, 3]
    dweight_partial_ptr,  # [programs, groups, channels] or None
    dbias_partial_ptr,
    samples,
    groups,
    channels,
    spatial,
    eps: tl.float64,
    negative_slope: tl.float64,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
):
    """A block of groups of each of this program's samples in turn."""
    DTYPE: tl.constexpr = compute_dtype(x_ptr.dtype.element_ty)
    ROWS: tl.constexpr = TILE.samples * TILE.groups
    SAMPLES: tl.constexpr = TILE.samples
    GROUPS: tl.constexpr = TILE.groups
    CHANNELS: tl.constexpr = TILE.channels
    SPATIAL: tl.constexpr = 1 if TILE.channels_last else 2  # which dimension it is
    program = tl.program_id(1).to(tl.int64)
    groups, channels, spatial = in_elements(groups, channels, spatial, TILE)
    first_group, sample, group = program_groups(tl.program_id(0), TILE)
    parameter = first_group * channels
    left = groups - first_group
    dweight = tl.zeros([ROWS, CHANNELS], DTYPE)
    dbias = tl.zeros([ROWS, CHANNELS], DTYPE)
    if parameters.weight is not None:
        weight = load_parameter(parameters.weight + parameter, group, channels, left, TILE, DTYPE)
    if parameters.bias is not None:
        bias = load_parameter(parameters.bias + parameter, group, channels, left, TILE, DTYPE)

    for tile in range(program, tl.cdiv(samples, SAMPLES), tl.num_programs(1)):
        first_sample = tile * SAMPLES
        at = tile_access(first_sample, first_group, sample, group, samples, groups, channels, spatial, TILE)
        mean = load_mean(statistics_ptr, at.first_row + at.row, at.row_mask)
        var = load_spread(statistics_ptr, at.first_row + at.row, at.row_mask)
        rstd = tl.where(at.row_mask, rstd_of(var, eps), 0.0)
        x = tl.load(x_ptr + at.base + at.offsets, mask=at.mask, other=0.0).to(DTYPE)
        deviation = x - mean.high[:, None, None] - mean.low[:, None, None]
        dz = tl.load(dy_ptr + at.base + at.offsets, mask=at.mask, other=0.0).to(DTYPE)
        if ACT is not None:
            scale = rstd[:, None, None]
            if parameters.weight is not None:
                scale *= weight
            z = deviation * scale
            if parameters.bias is not None:
                z += bias
            dz = activation_backward(dz, z, negative_slope, ACT, x_ptr.dtype.element_ty)
            dz = tl.where(at.mask, dz, 0.0)

        tile_dweight, tile_dbias = two_sums(dz * deviation, dz, SPATIAL)  # dz is 0 where there is no element
        tile_dweight *= rstd[:, None]
        dweight += tile_dweight
        dbias += tile_dbias
        if dx_ptr is not None:
            wdz = dz
            if parameters.weight is not None:
                wdz = dz * weight
                # selected: each lane would fuse its own product with a sum, and lanes differ in a last digit
                row_mask = at.row_mask[:, None]
                tile_dweight = tl.where(row_mask, tile_dweight * tl.reshape(weight, tile_dweight.shape), 0.0)
                tile_dbias = tl.where(row_mask, tile_dbias * tl.reshape(weight, tile_dbias.shape), 0.0)
            c1, c2 = two_sums(tile_dweight, tile_dbias, 1)
            c1 = (divide(c1, channels * spatial) * rstd)[:, None, None]
            c2 = divide(c2, channels * spatial)[:, None, None]
            if CHANNELS == 1:
                rstd = divide_by_std(tl.full(var.shape, 1.0, DTYPE), exact_std(var, eps))
            dx = (wdz - deviation * c1 - c2) * rstd[:, None, None]
            tl.store(dx_ptr + at.base + at.offsets, dx.to(dx_ptr.dtype.element_ty), mask=at.mask)

    group = tl.arange(0, GROUPS)[:, None]
    channel = tl.arange(0, CHANNELS)[None, :]
    mask = (group < left) & (channel < channels)
    offsets = program * groups * channels + parameter + group * channels + channel
    if dweight_partial_ptr is not None:
        dweight = tl.sum(tl.reshape(dweight, [SAMPLES, GROUPS, CHANNELS]), 0)
        tl.store(dweight_partial_ptr + offsets, dweight, mask=mask)
    if dbias_partial_ptr is not None:
        dbias = tl.sum(tl.reshape(dbias, [SAMPLES, GROUPS, CHANNELS]), 0)
        tl.store(dbias_partial_ptr + offsets, dbias, mask=mask)
