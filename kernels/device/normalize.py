"""Device code that normalises tiles of channels, and what follows in the same launch and its gradient.

z = (x - mean) scale + bias + residual,  y = act(z),  scale = weight / std
dz = dy act'(z)

A mean is high + low, and low scale a part of the bias: what is computed of an element is x - high.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from normreg.kernels.device.activations import activate, activation_backward, is_steep, lines_backward
from normreg.kernels.device.bits import load_bits, store_bits
from normreg.kernels.device.channels import load_tile, store_tile, tile_access
from normreg.kernels.device.per_channel import load_channels
from normreg.kernels.device.statistics import compute_dtype, divide, divide_by_std


class Affine(NamedTuple):
    """What is subtracted from x, what that is multiplied by and what is added, [channels, 1]."""

    high: Any
    scale: Any
    bias: Any


@triton.jit
def load_affine(per_channel, mean, std, channel, mask, DTYPE: tl.constexpr):
    """The `Affine` of the statistics and the parameters."""
    scale = divide_by_std(load_channels(per_channel.weight, channel, mask, DTYPE, 1.0), std)
    bias = load_channels(per_channel.bias, channel, mask, DTYPE) - mean.low * scale
    return Affine(mean.high[:, None], scale[:, None], bias[:, None])


@triton.jit
def store_normalized(
    elements, x, affine, access, program, negative_slope, ACT: tl.constexpr, TILE: tl.constexpr
):
    """Stores y of a tile x and, where they are kept, which elements are on the line of slope 1."""
    z = (x - affine.high) * affine.scale + affine.bias
    if elements.residual is not None:
        z += load_tile(elements.residual, access, z.dtype)
    if elements.bits is not None:
        store_bits(elements.bits, is_steep(z, ACT), access.tile, program, TILE)
    y = activate(z, negative_slope, ACT, elements.y.dtype.element_ty)
    store_tile(elements.y, access, y)


@triton.jit
def normalize_tiles(elements, affine, program, tiles, negative_slope, ACT: tl.constexpr, TILE: tl.constexpr):
    """`store_normalized` of the tiles from the first to before the last, backwards."""
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    first_tile, last_tile = tiles
    for back in range(first_tile, last_tile):
        tile = first_tile + last_tile - 1 - back
        access = tile_access(tile, program, TILE)
        x = load_tile(elements.x, access, DTYPE)
        store_normalized(elements, x, affine, access, program, negative_slope, ACT, TILE)


@triton.jit
def load_dz(elements, affine, access, program, negative_slope, ACT: tl.constexpr, TILE: tl.constexpr):
    """dz, 0 where there is no element, and x - high, of a tile."""
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    dz = load_tile(elements.dy, access, DTYPE)
    deviation = load_tile(elements.x, access, DTYPE) - affine.high
    if elements.bits is not None:
        steep = load_bits(elements.bits, access.tile, program, TILE)
        dz = lines_backward(dz, steep, negative_slope, ACT)
    elif ACT is not None:
        z = deviation * affine.scale + affine.bias
        if elements.residual is not None:
            z += load_tile(elements.residual, access, DTYPE)
        dz = activation_backward(dz, z, negative_slope, ACT, elements.x.dtype.element_ty)
        dz = tl.where(access.mask, dz, 0.0)
    return dz, deviation


@triton.jit
def projections(dweight, dbias, mean, std, count):
    """c1 and c2, [channels, 1], of dx = (dz - (x - high) c1 - c2) scale."""
    c1 = divide(divide(dweight, std.value), count)
    c2 = divide(dbias, count) - mean.low * c1
    return c1[:, None], c2[:, None]
