"""Device code that normalises tiles of channels, and what follows in the same launch and its gradient.

z = (x - mean) scale + bias + residual,  y = act(z),  scale = rstd weight
dz = dy act'(z)
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from normreg.kernels.device.activations import activate, activation_backward, is_steep, lines_backward
from normreg.kernels.device.bits import load_bits, store_bits
from normreg.kernels.device.channels import load_tile, store_tile, tile_access
from normreg.kernels.device.per_channel import load_channels
from normreg.kernels.device.statistics import compute_dtype, subtract


class Affine(NamedTuple):
    """What x - mean is multiplied by and what is added, [channels, 1]."""

    scale: Any
    bias: Any


@triton.jit
def load_affine(per_channel, rstd, channel, mask, DTYPE: tl.constexpr):
    """The `Affine` of rstd and the parameters."""
    scale = rstd * load_channels(per_channel.weight, channel, mask, 1.0)
    bias = load_channels(per_channel.bias, channel, mask)
    return Affine(scale.to(DTYPE)[:, None], bias.to(DTYPE)[:, None])


@triton.jit
def store_normalized(
    elements, x, mean, affine, access, program, negative_slope, ACT: tl.constexpr, TILE: tl.constexpr
):
    """Stores y of a tile x and, where they are kept, which elements are on the line of slope 1."""
    z = subtract(x, mean) * affine.scale + affine.bias
    if elements.residual is not None:
        z += load_tile(elements.residual, access, z.dtype)
    if elements.bits is not None:
        store_bits(elements.bits, is_steep(z, ACT), access.tile, program, TILE)
    y = activate(z, negative_slope, ACT, elements.x.dtype.element_ty)
    store_tile(elements.y, access, y)


@triton.jit
def normalize_tiles(
    elements, mean, affine, program, tiles, negative_slope, ACT: tl.constexpr, TILE: tl.constexpr
):
    """`store_normalized` of the tiles from the first to before the last, backwards."""
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    first_tile, last_tile = tiles
    for back in range(first_tile, last_tile):
        tile = first_tile + last_tile - 1 - back
        access = tile_access(tile, program, TILE)
        x = load_tile(elements.x, access, DTYPE)
        store_normalized(elements, x, mean, affine, access, program, negative_slope, ACT, TILE)


@triton.jit
def load_dz(elements, mean, affine, access, program, negative_slope, ACT: tl.constexpr, TILE: tl.constexpr):
    """dz, 0 where there is no element, and x - mean, of a tile."""
    DTYPE: tl.constexpr = compute_dtype(elements.x.dtype.element_ty)
    dz = load_tile(elements.dy, access, DTYPE)
    deviation = subtract(load_tile(elements.x, access, DTYPE), mean)
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
def projections(dweight, dbias, rstd, count, DTYPE: tl.constexpr):
    """c1 and c2, [channels, 1], of dx = (dz - (x - mean) c1 - c2) scale."""
    c1 = (dweight * rstd / count).to(DTYPE)[:, None]
    return c1, (dbias / count).to(DTYPE)[:, None]
