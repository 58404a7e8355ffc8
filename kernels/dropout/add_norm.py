"""Dropout, row scale and layer scale of x [rows, cols], added to a residual, and LayerNorm of the sum's rows.

    z = residual + layer_scale row_scale x / keep       where kept, else residual (`dropout_add`)
    y = x_hat weight + bias                             x_hat = (z - mean) rstd (`layer_norm`, `rms_norm`)

    dz = (wdy - x_hat c1 - c2) rstd + the gradient that z has from elsewhere
    dresidual = dz                                      dx = layer_scale row_scale dz / keep, or 0
    dlayer_scale = sum over rows of dz row_scale x / keep

z is rounded to its dtype before it is normalised, and is what is kept for the backward, which draws the mask
again. Bytes in 16 bits: x, residual, z and y, 8; dy, z, dx and dresidual, 8, and 2 more for a gradient that z
has from elsewhere, and for x where there is a layer scale. dx and dresidual are one where nothing is
dropped or scaled. Rows are held in a tile (`add_norm_tile`) or in tiles (`add_norm_tiles`), or z is read
again by `layer_norm`.
"""

import math
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from normreg.kernels import dtypes, launch, layer_norm, tiling
from normreg.kernels.column_sums import column_sums
from normreg.kernels.dropout.add import dropout_add
from normreg.kernels.dropout.add_norm_tile import (
    dropout_add_norm_backward_kernel,
    dropout_add_norm_forward_kernel,
)
from normreg.kernels.dropout.add_norm_tiles import dropout_add_norm_forward_tiles_kernel
from normreg.kernels.dropout.drop import Drop, seed_arguments
from normreg.kernels.memory_format import contiguous
from normreg.kernels.tiling.rows import Rows


@launch.kept
def forward_launch(
    shape: torch.Size,
    cols: int,
    samples: int,
    z_dtype: torch.dtype,
    drop: Drop,
    eps: float,
    centered: bool,
    device: torch.device,
) -> layer_norm.Forward | None:
    """None where a row is too wide to be held."""
    rows = Rows.of(shape, cols)
    tile = tiling.rows.dropout_add_norm_forward_tile(rows, z_dtype)
    if not tile.covers(rows):
        return None
    in_tiles = tile.tiles > 1
    main = launch.Launch(
        dropout_add_norm_forward_tiles_kernel if in_tiles else dropout_add_norm_forward_kernel,
        (rows.tiles(tile),),
        device,
        *rows.in_vectors(),
        *drop.numbers(rows.rows, samples),
        eps,
        Z_DTYPE=dtypes.triton_dtype(z_dtype),
        CENTERED=centered,
        BITS=drop.bits,
        **rows.constants(tile),
    )
    saved = layer_norm.statistics_of(centered), dtypes.compute_dtype(z_dtype)
    return layer_norm.Forward(main, rows.rows, *saved)


@launch.kept
def backward_launches(
    shape: torch.Size,
    cols: int,
    samples: int,
    dtype: torch.dtype,
    drop: Drop,
    centered: bool,
    device: torch.device,
) -> layer_norm.Backward:
    rows = Rows.of(shape, cols)
    tile = tiling.rows.dropout_add_norm_backward_tile(rows, dtypes.compute_dtype(dtype))
    sums = None
    if not tile.covers(rows):
        sums = layer_norm.sums_launch(rows, dtype, centered, device)
        tile = tiling.rows.dropout_add_norm_backward_parameters_tile()
    col_blocks, tiles = triton.cdiv(cols, tile.cols), rows.tiles(tile)
    programs = tiling.partials.row_programs(tile, tiles, col_blocks, device)
    main = launch.Launch(
        dropout_add_norm_backward_kernel,
        (col_blocks, programs),
        device,
        *rows.in_vectors(),
        *drop.numbers(rows.rows, samples),
        CENTERED=centered,
        BITS=drop.bits,
        **rows.constants(tile),
    )
    return layer_norm.Backward(sums, main, programs)


def dropout_add_norm_forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    layer_scale: Tensor | None,
    row_scale: Tensor | None,
    seed: int | Tensor | None,
    drop: Drop,
    normalized_shape: Sequence[int],
    eps: float,
    z_dtype: torch.dtype,
    out_dtype: torch.dtype,
    centered: bool,
    save_z: bool,
    save_statistics: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y in `out_dtype`; z in `z_dtype` and statistics, None where not to be saved. All are contiguous."""
    x = x.contiguous()
    residual, *parameters = contiguous(residual, weight, bias, layer_scale, row_scale)
    cols, samples = math.prod(normalized_shape), drop.samples_of(x, row_scale)
    kept = forward_launch(x.shape, cols, samples, z_dtype, drop, eps, centered, x.device)
    if kept is None:
        z = dropout_add(x, residual, layer_scale, row_scale, drop, seed, z_dtype, cols)
        y, statistics = layer_norm.layer_norm_forward(
            z, weight, bias, normalized_shape, eps, out_dtype, save_statistics, centered
        )
        return y, z if save_z else None, statistics
    main, rows, numbers, compute_dtype = kept
    y = torch.empty_like(x, dtype=out_dtype)
    z = torch.empty_like(x, dtype=z_dtype) if save_z else None
    statistics = x.new_empty(rows, numbers, dtype=compute_dtype) if save_statistics else None
    seed_ptr, seed = seed_arguments(seed, x.device)
    launch.launch(main, x, residual, z, y, statistics, *parameters, seed_ptr, numbers=(seed,))
    return y, z, statistics


def dropout_add_norm_backward(
    dy: Tensor,
    dz: Tensor | None,
    z: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    layer_scale: Tensor | None,
    row_scale: Tensor | None,
    statistics: Tensor,
    seed: int | Tensor | None,
    drop: Drop,
    normalized_shape: Sequence[int],
    centered: bool,
    dtypes: Sequence[torch.dtype],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The wanted ones of dx, dresidual, dweight, dbias and dlayer_scale, None for the others.

    dz: the gradient that z has from elsewhere, or None. x: where dlayer_scale is wanted, else None.
    dtypes: of dx, dresidual, and of dweight and dbias.
    """
    dx_dtype, dresidual_dtype, parameter_dtype = dtypes
    want_dx, want_dresidual, *want_parameters, want_dlayer_scale = wanted
    dy, z = dy.contiguous(), z.contiguous()
    dz, x, *scales = contiguous(dz, x, weight, layer_scale, row_scale)
    cols, samples = math.prod(normalized_shape), drop.samples_of(z, row_scale)
    sums, main, programs = backward_launches(z.shape, cols, samples, z.dtype, drop, centered, z.device)
    dx = torch.empty_like(z, dtype=dx_dtype) if want_dx else None
    dresidual = torch.empty_like(z, dtype=dresidual_dtype) if want_dresidual else None
    partials = [
        statistics.new_empty(programs, cols) if want else None
        for want in (*want_parameters, want_dlayer_scale)
    ]
    of_rows = statistics, *layer_norm.row_sums(sums, dy, z, scales[0], statistics, centered)
    seed_ptr, seed = seed_arguments(seed, z.device)
    launch.launch(main, dy, z, dz, x, dx, dresidual, *scales, *of_rows, *partials, seed_ptr, numbers=(seed,))
    gradients = column_sums(partials[:2], want_parameters, parameter_dtype)
    if want_dlayer_scale:
        gradients += column_sums((partials[2], None), (True, False), layer_scale.dtype)[:1]
    else:
        gradients.append(None)
    return dx, dresidual, *(None if grad is None else grad.view(normalized_shape) for grad in gradients)
