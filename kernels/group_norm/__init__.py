"""Group normalisation of each sample's groups of adjacent channels, and all of their positions.

    n = channels of a group x spatial, sums over the n elements of one group of one sample
    mean = sum(x) / n                        var = sum((x - mean)^2) / n
    rstd = 1 / sqrt(var + eps)               x_hat = (x - mean) rstd
    y = x_hat weight + bias                  weight, bias: one of each channel

    wdy = weight dy                          dweight = sum over samples and positions of dy x_hat
    c1 = sum(x_hat wdy) / n                  dbias = sum over samples and positions of dy
    c2 = sum(wdy) / n                        dx = (wdy - x_hat c1 - c2) rstd

The mean is computed, saved and subtracted relative to the group's first element, `shift`, as in
`layer_norm`. With one channel a group this is instance normalisation.

A group is contiguous. One of up to `hardware.HELD_WORDS_*` words, its channels and positions padded to powers
of two, is held in registers and read once: 4 bytes an element forward and 6 backward in 16 bits. Those of
larger groups are in `group_norm.splits`. dweight and dbias are partial sums a program, added in a fixed
order by the last launch, which is `layer_norm`'s.
"""

import torch
import triton
import triton.language as tl

from normreg.kernels import dtypes, launch, tiling
from normreg.kernels.device.rows import load_x_hat
from normreg.kernels.device.statistics import moments, rstd_of
from normreg.kernels.group_norm import splits as group_norm_split
from normreg.kernels.layer_norm import finish


@triton.jit
def program_groups(
    group_block, groups, channels, spatial, VECTOR: tl.constexpr, SPATIAL: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_GROUPS: tl.constexpr,
):  # fmt: skip
    """(channels, spatial) in elements, then the first group, and the sample and the group of each row."""
    if SPATIAL:
        spatial = spatial * VECTOR
    else:
        channels = channels * VECTOR
        spatial = 1
    row = tl.arange(0, BLOCK_SAMPLES * BLOCK_GROUPS)
    return channels, spatial, group_block.to(tl.int64) * BLOCK_GROUPS, row // BLOCK_GROUPS, row % BLOCK_GROUPS


@triton.jit
def tile_access(
    first_sample, first_group, sample, group, samples, groups, channels, spatial,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    """(first row, rows, their mask) of [samples, groups], then (base, starts, offsets, mask) of the elements.

    Rows are (sample, group) of the tile; offsets [rows, channels, spatial] and starts [rows] are from base.
    """
    row_mask = (first_sample + sample < samples) & (first_group + group < groups)
    row = sample * groups + group
    start = row * channels * spatial
    channel = tl.arange(0, BLOCK_CHANNELS)[None, :, None]
    position = tl.arange(0, BLOCK_SPATIAL)[None, None, :]
    mask = row_mask[:, None, None] & (channel < channels) & (position < spatial)
    first_row = first_sample * groups + first_group
    offsets = start[:, None, None] + channel * spatial + position
    return first_row, row, row_mask, first_row * channels * spatial, start, offsets, mask


@triton.jit
def load_parameter(ptr, group, channels, groups_left, BLOCK_CHANNELS: tl.constexpr, DTYPE: tl.constexpr):
    """[rows, channels, 1] of [groups, channels], which ptr is in."""
    channel = tl.arange(0, BLOCK_CHANNELS)[None, :]
    mask = (group < groups_left)[:, None] & (channel < channels)
    value = tl.load(ptr + group[:, None] * channels + channel, mask=mask, other=0.0)
    return value.to(DTYPE)[:, :, None]


@triton.jit(do_not_specialize=["samples", "groups", "channels", "spatial"])
def group_norm_forward_kernel(
    x_ptr, y_ptr,                # [samples, groups, channels, spatial]
    weight_ptr, bias_ptr,        # [groups, channels] or None
    mean_ptr, var_ptr,           # [samples, groups] or None
    samples, groups, channels, spatial,
    eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr, SPATIAL: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_GROUPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    group_blocks = tl.cdiv(groups, BLOCK_GROUPS)
    first_sample = (tl.program_id(0) // group_blocks).to(tl.int64) * BLOCK_SAMPLES
    channels, spatial, first_group, sample, group = program_groups(
        tl.program_id(0) % group_blocks, groups, channels, spatial, VECTOR, SPATIAL,
        BLOCK_SAMPLES, BLOCK_GROUPS,
    )  # fmt: skip
    first_row, row, row_mask, base, start, offsets, mask = tile_access(
        first_sample, first_group, sample, group, samples, groups, channels, spatial,
        BLOCK_CHANNELS, BLOCK_SPATIAL,
    )  # fmt: skip
    ROWS: tl.constexpr = BLOCK_SAMPLES * BLOCK_GROUPS

    x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)
    shift = tl.load(x_ptr + base + start, mask=row_mask, other=0.0).to(COMPUTE_DTYPE)
    x -= shift[:, None, None]
    flat = tl.reshape(x, [ROWS, BLOCK_CHANNELS * BLOCK_SPATIAL])
    flat_mask = tl.reshape(mask, [ROWS, BLOCK_CHANNELS * BLOCK_SPATIAL])
    mean, m2 = moments(flat, flat_mask, channels * spatial, 1)
    var = m2 / (channels * spatial)
    rstd = rstd_of(var, eps)
    y = (x - mean[:, None, None]) * rstd[:, None, None]
    parameter = first_group * channels
    left = groups - first_group
    if weight_ptr is not None:
        y *= load_parameter(weight_ptr + parameter, group, channels, left, BLOCK_CHANNELS, COMPUTE_DTYPE)
    if bias_ptr is not None:
        y += load_parameter(bias_ptr + parameter, group, channels, left, BLOCK_CHANNELS, COMPUTE_DTYPE)

    tl.store(y_ptr + base + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)
    if mean_ptr is not None:
        tl.store(mean_ptr + first_row + row, mean, mask=row_mask)
        tl.store(var_ptr + first_row + row, var, mask=row_mask)


@triton.jit(do_not_specialize=["samples", "groups", "channels", "spatial"])
def group_norm_backward_kernel(
    dy_ptr, x_ptr, dx_ptr,                        # [samples, groups, channels, spatial]; dx or None
    weight_ptr,                                   # [groups, channels] or None
    mean_ptr, var_ptr,                            # [samples, groups]
    dweight_partial_ptr, dbias_partial_ptr,       # [programs, groups, channels] or None
    samples, groups, channels, spatial,
    eps: tl.float64,
    COMPUTE_DTYPE: tl.constexpr, VECTOR: tl.constexpr, SPATIAL: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_GROUPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_SPATIAL: tl.constexpr,
):  # fmt: skip
    """A block of groups of every sample of this program in turn."""
    program = tl.program_id(1).to(tl.int64)
    channels, spatial, first_group, sample, group = program_groups(
        tl.program_id(0), groups, channels, spatial, VECTOR, SPATIAL, BLOCK_SAMPLES, BLOCK_GROUPS
    )
    parameter = first_group * channels
    left = groups - first_group
    dweight = tl.zeros([BLOCK_SAMPLES * BLOCK_GROUPS, BLOCK_CHANNELS], COMPUTE_DTYPE)
    dbias = tl.zeros([BLOCK_SAMPLES * BLOCK_GROUPS, BLOCK_CHANNELS], COMPUTE_DTYPE)
    if dx_ptr is not None and weight_ptr is not None:
        weight = load_parameter(weight_ptr + parameter, group, channels, left, BLOCK_CHANNELS, COMPUTE_DTYPE)

    for tile in range(program, tl.cdiv(samples, BLOCK_SAMPLES), tl.num_programs(1)):
        first_row, row, row_mask, base, start, offsets, mask = tile_access(
            tile * BLOCK_SAMPLES, first_group, sample, group, samples, groups, channels, spatial,
            BLOCK_CHANNELS, BLOCK_SPATIAL,
        )  # fmt: skip
        mean = tl.load(mean_ptr + first_row + row, mask=row_mask, other=0.0)[:, None, None]
        var = tl.load(var_ptr + first_row + row, mask=row_mask, other=0.0)
        rstd = rstd_of(var, eps)[:, None, None]
        shift = tl.load(x_ptr + base + start, mask=row_mask, other=0.0).to(COMPUTE_DTYPE)[:, None, None]
        x_hat = load_x_hat(x_ptr + base, offsets, mask, shift, mean, rstd, COMPUTE_DTYPE)
        dy = tl.load(dy_ptr + base + offsets, mask=mask, other=0.0).to(COMPUTE_DTYPE)

        tile_dweight = tl.sum(dy * x_hat, 2)
        tile_dbias = tl.sum(dy, 2)
        dweight += tile_dweight
        dbias += tile_dbias
        if dx_ptr is not None:
            wdy = dy
            if weight_ptr is not None:
                wdy = dy * weight
                tile_dweight *= tl.reshape(weight, tile_dweight.shape)
                tile_dbias *= tl.reshape(weight, tile_dbias.shape)
            c1 = (tl.sum(tile_dweight, 1) / (channels * spatial))[:, None, None]
            c2 = (tl.sum(tile_dbias, 1) / (channels * spatial))[:, None, None]
            dx = (wdy - x_hat * c1 - c2) * rstd
            tl.store(dx_ptr + base + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)

    group = tl.arange(0, BLOCK_GROUPS)[:, None]
    channel = tl.arange(0, BLOCK_CHANNELS)[None, :]
    mask = (group < left) & (channel < channels)
    offsets = program * groups * channels + parameter + group * channels + channel
    if dweight_partial_ptr is not None:
        dweight = tl.sum(tl.reshape(dweight, [BLOCK_SAMPLES, BLOCK_GROUPS, BLOCK_CHANNELS]), 0)
        tl.store(dweight_partial_ptr + offsets, dweight, mask=mask)
    if dbias_partial_ptr is not None:
        dbias = tl.sum(tl.reshape(dbias, [BLOCK_SAMPLES, BLOCK_GROUPS, BLOCK_CHANNELS]), 0)
        tl.store(dbias_partial_ptr + offsets, dbias, mask=mask)


@launch.planned
def forward_launch(samples, groups, channels, spatial, dtype, eps, device):
    """None where a group of `channels` times `spatial` is too large to be held."""
    tile = tiling.groups.group_norm_forward_tile(groups, channels, spatial, dtypes.compute_dtype(dtype))
    if tile is None:
        return None
    sizes, constants = sizes_and_constants(samples, groups, channels, spatial, dtype, tile)
    programs = triton.cdiv(samples, tile.samples) * triton.cdiv(groups, tile.groups)
    return launch.Launch(group_norm_forward_kernel, (programs,), device, *sizes, eps, **constants)


@launch.planned
def backward_launch(samples, groups, channels, spatial, dtype, eps, device):
    """None where a group is too large; its grid is (group blocks, partial sums)."""
    tile = tiling.groups.group_norm_backward_tile(groups, channels, spatial, dtypes.compute_dtype(dtype))
    if tile is None:
        return None
    sizes, constants = sizes_and_constants(samples, groups, channels, spatial, dtype, tile)
    group_blocks = triton.cdiv(groups, tile.groups)
    partials = tiling.groups.group_norm_backward_programs(samples, spatial, tile, group_blocks, device)
    grid = (group_blocks, partials)
    return launch.Launch(group_norm_backward_kernel, grid, device, *sizes, eps, **constants)


def sizes_and_constants(samples, groups, channels, spatial, dtype, tile):
    """The kernels' sizes, the contiguous one in vectors, and what they are compiled for."""
    vector = tiling.hardware.vector(channels if spatial == 1 else spatial)
    in_vectors = (channels // vector, 1) if spatial == 1 else (channels, spatial // vector)
    return (samples, groups, *in_vectors), dict(
        COMPUTE_DTYPE=dtypes.triton_dtype(dtypes.compute_dtype(dtype)),
        VECTOR=vector,
        SPATIAL=spatial > 1,
        BLOCK_SAMPLES=tile.samples,
        BLOCK_GROUPS=tile.groups,
        BLOCK_CHANNELS=tile.channels,
        BLOCK_SPATIAL=tile.spatial,
        num_warps=tile.num_warps,
    )


def sizes_of(x, groups):
    """samples, groups, channels of a group, positions"""
    return x.shape[0], groups, x.shape[1] // groups, x.shape[2:].numel()


def group_norm_forward(x, weight, bias, groups, eps, out_dtype, save_statistics):
    """y in `out_dtype`, and mean and var of each group, or None where they are not to be saved."""
    x, weight, bias = launch.contiguous(x, weight, bias)
    y = torch.empty_like(x, dtype=out_dtype, memory_format=torch.contiguous_format)
    mean = var = None
    if save_statistics:
        mean = torch.empty((x.shape[0], groups), dtype=dtypes.compute_dtype(x.dtype), device=x.device)
        var = torch.empty_like(mean)
    plan = forward_launch(*sizes_of(x, groups), x.dtype, eps, x.device)
    if plan is None:
        group_norm_split.forward(x, y, weight, bias, mean, var, groups, eps)
    else:
        launch.launch(plan, x, y, weight, bias, mean, var)
    return y, mean, var


def group_norm_backward(dy, x, weight, mean, var, groups, eps, parameter_dtype, wanted):
    """The wanted ones of dx, dweight and dbias, None for the others."""
    want_dx, *want_parameters = wanted
    dy, x, weight = launch.contiguous(dy, x, weight)
    (samples, channels), device = x.shape[:2], x.device
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if want_dx else None
    plan = backward_launch(*sizes_of(x, groups), x.dtype, eps, device)
    partials = samples if plan is None else plan.grid[1]  # of each sample, where it is split
    sums = [
        torch.empty((partials, channels), dtype=mean.dtype, device=device) if want else None
        for want in want_parameters
    ]
    if plan is None:
        group_norm_split.backward(dy, x, dx, weight, mean, var, *sums, groups, eps)
    else:
        launch.launch(plan, dy, x, dx, weight, mean, var, *sums)
    return dx, *finish(sums, want_parameters, parameter_dtype)
