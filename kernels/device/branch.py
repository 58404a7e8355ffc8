"""Device helpers on a branch: what dropout, row scale and layer scale leave of x before a residual is added.

    branch = layer_scale row_scale x / keep     where kept, else 0

`keep` and the decision are dropout's, of the element, or one for all rows of a sample (stochastic depth).
A tensor is [rows, cols]; row_scale is [samples], and a sample has `rows_per_sample` rows. Without layer scale
the map from x to the branch is its own transpose, as is all of it for given scales: dx of the gradient of the
branch is the branch of that gradient, and no mask is stored.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from normreg.kernels.device.random import keep_at, keep_in_rows
from normreg.kernels.device.rows import load, load_parameter


class Inputs(NamedTuple):
    """[rows, cols] each; residual or None."""

    x: tl.tensor
    residual: tl.tensor


class Results(NamedTuple):
    """What a norm of the sum stores: z or None, and y, [rows, cols]; statistics of each row, or None."""

    z: tl.tensor
    y: tl.tensor
    statistics: tl.tensor


class Incoming(NamedTuple):
    """What its backward is given, [rows, cols] each.

    dz: the gradient that z has from elsewhere, or None. x: where a gradient is a sum of dz x, or None.
    """

    dy: tl.tensor
    z: tl.tensor
    dz: tl.tensor
    x: tl.tensor


@triton.jit
def decisions(
    drop,
    row_scale_ptr,
    row,
    row_mask,
    cols,
    first_col,
    DTYPE: tl.constexpr,
    BITS: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """keep [rows, cols or 1], and the product of the scales [rows, 1]; constants where there are none.

    drop: seed, rows_per_sample, keep_threshold and scale.
    """
    seed, rows_per_sample, keep_threshold, scale = drop
    factor = tl.full([row.shape[0]], 1.0, DTYPE)
    if row_scale_ptr is not None:
        factor = load(row_scale_ptr, row // rows_per_sample, row_mask, DTYPE)
    if BITS == 0:
        keep = tl.full([row.shape[0], 1], 1, tl.int1)
    else:
        factor *= tl.full([], scale, DTYPE)
        if SHARED:
            keep = keep_at(seed, row // rows_per_sample, keep_threshold)[:, None]
        else:
            keep = keep_in_rows(seed, row, cols, first_col, keep_threshold, BITS, BLOCK_COLS)
    return keep, factor[:, None]


@triton.jit
def branch(x, keep, factor):
    """What layer_scale multiplies; what is not kept is dropped, inf and nan too."""
    return tl.where(keep, x * factor, 0.0)


@triton.jit
def load_z(
    inputs,
    layer_scale_ptr,
    base,
    offsets,
    mask,
    col,
    cols,
    keep,
    factor,
    DTYPE: tl.constexpr,
):
    """z [rows, cols], the branch of x added to the residual."""
    z = branch(load(inputs.x + base, offsets, mask, DTYPE), keep, factor)
    if layer_scale_ptr is not None:
        z *= load_parameter(layer_scale_ptr, col, cols, DTYPE)
    if inputs.residual is not None:
        z += load(inputs.residual + base, offsets, mask, DTYPE)
    return z
