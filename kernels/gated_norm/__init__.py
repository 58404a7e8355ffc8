"""RMS normalisation with a gate z, over each group of `cols` elements of a row, before the gate or behind it.

    before    rstd = 1 / sqrt(sum(x^2) / cols + eps)      x_hat = x rstd
              y = (x_hat weight + bias) act(z)
    behind    u = x act(z),  rstd and x_hat of u          y = x_hat weight + bias

    before    d = dy act(z)                               dx = (wd - x_hat c1) rstd
              dz = dy (x_hat weight + bias) act'(z)
    behind    d = dy,  du = (wd - x_hat c1) rstd          dx = du act(z),  dz = du x act'(z)

    wd = weight d                                         dweight = sum over rows of d x_hat
    c1 = sum(x_hat wd) / cols                             dbias = sum over rows of d

act is silu or sigmoid. Kept for the backward are x, z, the parameters and rstd of each group of a row: act(z)
is computed once more. Bytes in 16 bits: x, z and y, 6; dy, x, z, dx and dz, 10.

A tensor is [rows, groups, cols], and the parameters are [groups, cols]. Where a row is one group and not
all rows are equally far apart, as heads are not that lie beside others in a projection, these heads are the
groups, which share parameters [cols]. A program takes rows of one group, as many as a tile has (`tile`).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from normreg.kernels import dtypes, launch, tiling
from normreg.kernels.column_sums import column_sums
from normreg.kernels.gated_norm.tile import gated_norm_backward_kernel, gated_norm_forward_kernel
from normreg.kernels.memory_format import contiguous, in_rows, is_in_rows
from normreg.kernels.tiling.rows import Rows, RowTile


class Layout(NamedTuple):
    """How x and gate lie in memory, as [rows, groups, cols]."""

    rows: int
    groups: int
    cols: int
    strides: tuple[int, ...]  # of rows and of groups, x's, then gate's
    shared: bool  # whether the groups share their parameters

    @property
    def vector(self) -> int:
        return math.gcd(tiling.hardware.vector(self.cols), *self.strides)

    def in_vectors(self) -> tuple[int, ...]:
        """As kernels take it: cols and strides divided by `vector`."""
        return self.rows, self.groups, *(size // self.vector for size in (self.cols, *self.strides))

    def constants(self, tile: RowTile) -> dict[str, object]:
        return dict(SHARED=self.shared, TILE=tile._replace(vector=self.vector), num_warps=tile.num_warps)


def in_groups(x: Tensor, gate: Tensor, group_size: int) -> tuple[Tensor, Tensor, Layout]:
    """x and gate as [rows, groups, cols], views where they can be, else copies, and their layout."""
    groups = x.shape[-1] // group_size
    shared = groups == 1 and x.dim() > 2 and not (is_in_rows(x) and is_in_rows(gate))
    if shared:
        groups = x.shape[-2]
    x, gate = in_rows(x, groups, group_size), in_rows(gate, groups, group_size)
    strides = (*x.stride()[:2], *gate.stride()[:2])
    return x, gate, Layout(x.shape[0], groups, group_size, strides, shared)


def widest(*dtypes: torch.dtype) -> torch.dtype:
    return max(dtypes, key=lambda dtype: dtype.itemsize)


@launch.kept
def forward_launch(
    layout: Layout, dtype: torch.dtype, eps: float, norm_before_gate: bool, act: str, device: torch.device
) -> launch.Launch:
    tile = tiling.modulated.gated_norm_forward_tile(Rows(1, layout.rows, layout.cols, False), dtype)
    return launch.Launch(
        gated_norm_forward_kernel,
        (triton.cdiv(layout.rows, tile.rows) * layout.groups,),
        device,
        *layout.in_vectors(),
        eps,
        ACT=act,
        NORM_FIRST=norm_before_gate,
        **layout.constants(tile),
    )


def gated_norm_forward(
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    group_size: int,
    norm_before_gate: bool,
    act: str,
    eps: float,
    out_dtype: torch.dtype,
    save_statistics: bool,
) -> tuple[Tensor, Tensor | None]:
    """y in `out_dtype`, and rstd of each group of a row, [rows * groups], None where not to be saved."""
    y = torch.empty_like(x, dtype=out_dtype, memory_format=torch.contiguous_format)
    x, gate, layout = in_groups(x, gate, group_size)
    statistics = None
    if save_statistics:
        statistics = x.new_empty(layout.rows * layout.groups, dtype=dtypes.compute_dtype(x.dtype))
    dtype = widest(x.dtype, gate.dtype, out_dtype)
    call = forward_launch(layout, dtype, eps, norm_before_gate, act, x.device)
    launch.launch(call, x, gate, y, statistics, *contiguous(weight, bias))
    return y, statistics


@launch.kept
def backward_launch(
    layout: Layout, dtype: torch.dtype, norm_before_gate: bool, act: str, device: torch.device
) -> launch.Launch:
    tile = tiling.modulated.gated_norm_backward_tile(Rows(1, layout.rows, layout.cols, False), dtype)
    tiles = triton.cdiv(layout.rows, tile.rows)
    return launch.Launch(
        gated_norm_backward_kernel,
        (layout.groups, tiling.partials.row_programs(tile, tiles, layout.groups, device)),
        device,
        *layout.in_vectors(),
        ACT=act,
        NORM_FIRST=norm_before_gate,
        **layout.constants(tile),
    )


def gated_norm_backward(
    dy: Tensor,
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    group_size: int,
    norm_before_gate: bool,
    act: str,
    parameter_dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The wanted ones of dx, dgate, dweight and dbias, None for the others."""
    want_dx, want_dgate, *want_parameters = wanted
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if want_dx else None
    dgate = torch.empty_like(gate, memory_format=torch.contiguous_format) if want_dgate else None
    cols = x.shape[-1]
    x, gate, layout = in_groups(x, gate, group_size)
    dtype = widest(dy.dtype, x.dtype, gate.dtype)
    call = backward_launch(layout, dtype, norm_before_gate, act, x.device)
    # [programs, cols], or of every program and head where these share parameters
    sums = call.grid[1] * layout.groups * group_size // cols, cols
    partials = [statistics.new_empty(sums) if want else None for want in want_parameters]
    elements = dy.contiguous(), x, gate, dx, dgate
    launch.launch(call, *elements, *contiguous(weight, bias), statistics, None, None, *partials)
    return dx, dgate, *column_sums(partials, want_parameters, parameter_dtype)
