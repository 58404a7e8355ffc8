"""Group normalisation of each sample's groups of adjacent channels, over all positions, and activation.

    n = channels of a group x spatial, sums over the n elements of one group of one sample
    mean = sum(x) / n                        var = sum((x - mean)^2) / n
    rstd = 1 / sqrt(var + eps)               x_hat = (x - mean) rstd
    z = x_hat weight + bias                  weight, bias: one of each channel
    y = act(z)                               act may be absent: y = z

    dz = dy act'(z)
    wdz = weight dz                          dweight = sum over samples and positions of dz x_hat
    c1 = sum(x_hat wdz) / n                  dbias = sum over samples and positions of dz
    c2 = sum(wdz) / n                        dx = (wdz - x_hat c1 - c2) rstd

The mean is the sum of two numbers, as in `layer_norm`; saved of each group, in one tensor `statistics`, are
both and var. The backward computes z from x once more. With one channel a group this is instance
normalisation.

x is contiguous, so that a group is, or channels-last, [samples, spatial, channels]: y and dx lie as x does. A
group of up to `hardware.TILE_WORDS_*` words, its channels and positions padded to powers of two, fits into a
tile and is read once (`group_norm.tile`): 4 bytes an element forward and 6 backward in 16 bits. A larger one
is cut into splits (`group_norm.splits`). dweight and dbias are partial sums a program, added in a fixed order
by the last launch (`column_sums`).
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton

from normreg.kernels import dtypes, launch, tiling
from normreg.kernels.column_sums import column_sums
from normreg.kernels.group_norm import splits
from normreg.kernels.group_norm.tile import group_norm_backward_kernel, group_norm_forward_kernel
from normreg.kernels.memory_format import contiguous, dense, empty_in_format_of, in_format_of
from normreg.kernels.partition import in_format
from normreg.kernels.tiling.channels import ChannelTile


@launch.kept
def forward_launch(
    shape: torch.Size,
    contiguous: bool,
    groups: int,
    dtype: torch.dtype,
    eps: float,
    act: str | None,
    negative_slope: float,
    device: torch.device,
) -> launch.Launch | None:
    """None where a group is too large for a tile."""
    samples, *group = in_groups(shape, groups)
    of_elements = dtypes.compute_dtype(dtype), dtype.itemsize, act
    tile = tiling.groups.group_norm_forward_tile(*group, not contiguous, *of_elements)
    if tile is None:
        return None
    sizes, constants = sizes_and_constants(samples, *group, tile)
    programs = triton.cdiv(samples, tile.samples) * triton.cdiv(groups, tile.groups)
    numbers = *sizes, eps, negative_slope
    return launch.Launch(group_norm_forward_kernel, (programs,), device, *numbers, ACT=act, **constants)


@launch.kept
def backward_launch(
    shape: torch.Size,
    contiguous: bool,
    groups: int,
    dtype: torch.dtype,
    eps: float,
    act: str | None,
    negative_slope: float,
    device: torch.device,
) -> launch.Launch | None:
    """None where a group is too large; its grid is (group blocks, partial sums)."""
    samples, *group = in_groups(shape, groups)
    of_elements = dtypes.compute_dtype(dtype), dtype.itemsize, act
    tile = tiling.groups.group_norm_backward_tile(*group, not contiguous, *of_elements)
    if tile is None:
        return None
    sizes, constants = sizes_and_constants(samples, *group, tile)
    group_blocks = triton.cdiv(groups, tile.groups)
    partials = tiling.groups.group_norm_backward_programs(samples, group[-1], tile, group_blocks, device)
    grid, numbers = (group_blocks, partials), (*sizes, eps, negative_slope)
    return launch.Launch(group_norm_backward_kernel, grid, device, *numbers, ACT=act, **constants)


def in_groups(shape: torch.Size, groups: int) -> tuple[int, int, int, int]:
    """Samples, groups, channels of a group, and positions."""
    return shape[0], groups, shape[1] // groups, shape[2:].numel()


def sizes_and_constants(
    samples: int, groups: int, channels: int, spatial: int, tile: ChannelTile
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The kernels' sizes, the contiguous one in vectors, and what they are compiled for."""
    of_one = tile.channels_last and channels == 1  # groups are what lies side by side
    tile, (side, spatial) = in_format(tile, groups if of_one else channels, spatial, tile.channels_last)
    groups, channels = (side, 1) if of_one else (groups, side)
    return (samples, groups, channels, spatial), dict(TILE=tile, num_warps=tile.num_warps)


def group_norm_forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float,
    out_dtype: torch.dtype,
    save_statistics: bool,
    act: str | None = None,
    negative_slope: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """y in `out_dtype`, and statistics of each group, [samples, groups, 3], or None where not to be saved."""
    x = dense(x)
    weight, bias = contiguous(weight, bias)
    y = empty_in_format_of(x, out_dtype)
    statistics = None
    if save_statistics:
        statistics = x.new_empty(x.shape[0], groups, 3, dtype=dtypes.compute_dtype(x.dtype))
    numbers = eps, act, negative_slope
    of_tile = forward_launch(x.shape, x.is_contiguous(), groups, x.dtype, *numbers, x.device)
    if of_tile is not None:
        launch.launch(of_tile, x, y, weight, bias, statistics)
    else:
        splits.forward(x, y, weight, bias, statistics, groups, *numbers)
    return y, statistics


def group_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    statistics: torch.Tensor,
    groups: int,
    eps: float,
    parameter_dtype: torch.dtype,
    wanted: Sequence[bool],
    bias: torch.Tensor | None = None,
    act: str | None = None,
    negative_slope: float = 0.0,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The wanted ones of dx, dweight and dbias, None for the others.

    bias: needed where there is an activation.
    """
    want_dx, *want_parameters = wanted
    x = dense(x)
    dy = in_format_of(x, dy)
    weight, bias = contiguous(weight, bias)
    (samples, channels), device = x.shape[:2], x.device
    dx = empty_in_format_of(x) if want_dx else None
    numbers = eps, act, negative_slope
    of_tile = backward_launch(x.shape, x.is_contiguous(), groups, x.dtype, *numbers, device)
    partials = samples if of_tile is None else of_tile.grid[1]  # splits leave one for each sample
    sums = [statistics.new_empty(partials, channels) if want else None for want in want_parameters]
    if of_tile is not None:
        launch.launch(of_tile, dy, x, dx, weight, bias, statistics, *sums)
    else:
        splits.backward(dy, x, dx, weight, bias, statistics, *sums, groups, *numbers)
    return dx, *column_sums(sums, want_parameters, parameter_dtype)
