"""Group normalisation of each sample's groups of adjacent channels, and all of their positions.

    n = channels of a group x spatial, sums over the n elements of one group of one sample
    mean = sum(x) / n                        var = sum((x - mean)^2) / n
    rstd = 1 / sqrt(var + eps)               x_hat = (x - mean) rstd
    y = x_hat weight + bias                  weight, bias: one of each channel

    wdy = weight dy                          dweight = sum over samples and positions of dy x_hat
    c1 = sum(x_hat wdy) / n                  dbias = sum over samples and positions of dy
    c2 = sum(wdy) / n                        dx = (wdy - x_hat c1 - c2) rstd

The mean is the sum of two numbers, as in `layer_norm`; saved of each group, in one tensor `statistics`, are
both and var. With one channel a group this is instance normalisation.

A group is contiguous. One of up to `hardware.TILE_WORDS_*` words, its channels and positions padded to powers
of two, fits into a tile and is read once (`group_norm.tile`): 4 bytes an element forward and 6 backward in 16
bits. A larger one is cut into splits (`group_norm.splits`). dweight and dbias are partial sums a program,
added in a fixed order by the last launch (`column_sums`).
"""

from collections.abc import Sequence

import torch

from normreg.kernels import dtypes, launch
from normreg.kernels.column_sums import column_sums
from normreg.kernels.group_norm import splits, tile
from normreg.kernels.memory_format import contiguous


def group_norm_forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float,
    out_dtype: torch.dtype,
    save_statistics: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """y in `out_dtype`, and statistics of each group, [samples, groups, 3], or None where not to be saved."""
    x = x.contiguous()
    weight, bias = contiguous(weight, bias)
    y = torch.empty_like(x, dtype=out_dtype, memory_format=torch.contiguous_format)
    statistics = None
    if save_statistics:
        statistics = x.new_empty(x.shape[0], groups, 3, dtype=dtypes.compute_dtype(x.dtype))
    of_tile = tile.forward_launch(x.shape, groups, x.dtype, eps, x.device)
    if of_tile is not None:
        launch.launch(of_tile, x, y, weight, bias, statistics)
    else:
        splits.forward(x, y, weight, bias, statistics, groups, eps)
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
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The wanted ones of dx, dweight and dbias, None for the others."""
    want_dx, *want_parameters = wanted
    dy, x, weight = contiguous(dy, x, weight)
    (samples, channels), device = x.shape[:2], x.device
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if want_dx else None
    of_tile = tile.backward_launch(x.shape, groups, x.dtype, eps, device)
    partials = samples if of_tile is None else of_tile.grid[1]  # splits leave one for each sample
    sums = [statistics.new_empty(partials, channels) if want else None for want in want_parameters]
    if of_tile is not None:
        launch.launch(of_tile, dy, x, dx, weight, statistics, *sums)
    else:
        splits.backward(dy, x, dx, weight, statistics, *sums, groups, eps)
    return dx, *column_sums(sums, want_parameters, parameter_dtype)
