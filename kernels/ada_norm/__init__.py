"""A norm whose scale and shift are the sample's or the row's own, behind a gated sum: the seams of a DiT.

    z = residual + gate x                               or x (gate, scale, shift: modulations)
    y = (x_hat weight + bias) (1 + scale) + shift       x_hat of z, as in `layer_norm` and `rms_norm`

    dy' = (1 + scale) dy                                dscale = (x_hat weight + bias) dy,  dshift = dy
    dz of dy', as in `layer_norm`, + the gradient that z has from elsewhere
    dresidual = dz                                      dx = gate dz,  dgate = x dz
    dweight = sum over rows of x_hat dy'                dbias = sum over rows of dy'

A modulation is [vectors, cols], a vector for each row or for each sample, which is some rows one after
another; vectors may lie apart, as the pieces of one projection do. Gradients of a sample's vectors are sums
over its rows. With A = sum of x_hat dy and B = sum of dy over a sample, dscale is weight A + bias B and
dshift is B; dweight is the sum over samples of (1 + scale) A, dbias that of (1 + scale) B. So a program of
the backward leaves two sums over some rows of a sample, and that of dz x where there is a gate (`tile`), and
one launch makes all gradients of these (`sums`). Where scale is the rows' own, A and B are sums of x_hat dy'
and dy'.

Rows are held in a tile or, in the forward, in several (`tiles`). z is rounded to its dtype before it is
normalised, and is what is kept for the backward. Bytes in 16 bits: x and y, 4, with a residual x, residual, z
and y, 8; dy, z and dx, 6, and 2 each for dresidual, for x where there is a gate, and for the gradient that z
has from elsewhere. Of the rows, a scale and a gate cost 2 and 4 each, a shift 2 and none.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from normreg.kernels import dtypes, launch, layer_norm, tiling
from normreg.kernels.ada_norm.sums import ada_norm_backward_sums_kernel
from normreg.kernels.ada_norm.tile import ada_norm_backward_kernel, ada_norm_forward_kernel
from normreg.kernels.ada_norm.tiles import ada_norm_forward_tiles_kernel
from normreg.kernels.column_sums import column_sums
from normreg.kernels.memory_format import contiguous, in_rows
from normreg.kernels.tiling import hardware
from normreg.kernels.tiling.rows import Rows


class PerToken(NamedTuple):
    """Whether each modulation has a vector for each row."""

    gate: bool
    scale: bool
    shift: bool


class Layout(NamedTuple):
    """How rows are samples, and how modulations lie."""

    samples: int
    per_token: PerToken
    strides: tuple[int | None, ...]  # of x, None where its rows are side by side; of gate, scale, shift
    vector: int  # what the columns and all strides are a multiple of

    def in_vectors(self, *sizes: int | None) -> list[int | None]:
        return [None if size is None else size // self.vector for size in sizes]


def is_held(cols: int, dtype: torch.dtype) -> bool:
    """Whether kernels take rows of so many elements."""
    return cols * hardware.words_of(dtypes.compute_dtype(dtype)) ** 2 <= hardware.TILE_WORDS_BACKWARD


def laid_out(x: Tensor, *modulation: Tensor | None) -> tuple[Tensor, list[Tensor | None], Layout]:
    """x, or a copy whose rows can be read, and gate, scale and shift as [vectors, cols].

    Modulations are of x's shape or have a vector for each sample.
    """
    cols = x.shape[-1]
    per_token = PerToken(*[m is not None and m.shape == x.shape for m in modulation])
    rows = [None if m is None else in_rows(m, cols) for m in modulation]
    x, x_stride = layer_norm.where_they_are(x, cols, False)
    strides = tuple([0 if m is None else m.stride(0) for m in rows])
    shared = [m.shape[0] for m, own in zip(rows, per_token) if m is not None and not own]
    vector = hardware.vector(math.gcd(cols, x_stride or 0, *strides))
    return x, rows, Layout(shared[0] if shared else 1, per_token, (x_stride, *strides), vector)


@launch.kept
def forward_launch(
    shape: torch.Size,
    layout: Layout,
    z_dtype: torch.dtype,
    eps: float,
    centered: bool,
    device: torch.device,
) -> layer_norm.Forward:
    rows = Rows.of(shape, shape[-1])
    tile = tiling.modulated.ada_norm_forward_tile(rows, z_dtype, layout.vector)
    main = launch.Launch(
        ada_norm_forward_tiles_kernel if tile.tiles > 1 else ada_norm_forward_kernel,
        (rows.tiles(tile),),
        device,
        rows.rows,
        *layout.in_vectors(rows.cols),
        rows.rows // layout.samples,
        *layout.in_vectors(*layout.strides),
        eps,
        CENTERED=centered,
        PER_TOKEN=layout.per_token,
        **rows.constants(tile, layout.vector),
    )
    saved = layer_norm.statistics_of(centered), dtypes.compute_dtype(z_dtype)
    return layer_norm.Forward(main, rows.rows, *saved)


class Backward(NamedTuple):
    main: launch.Launch
    sums: launch.Launch
    programs: int  # of a sample


@launch.kept
def backward_launches(
    shape: torch.Size, layout: Layout, dtype: torch.dtype, loaded: int, centered: bool, device: torch.device
) -> Backward:
    rows = Rows.of(shape, shape[-1])
    tokens, cols = rows.rows // layout.samples, layout.in_vectors(rows.cols)
    tile = tiling.modulated.ada_norm_backward_tile(rows, dtype, loaded)
    programs = tiling.partials.sample_programs(tile, triton.cdiv(tokens, tile.rows), layout.samples, device)
    x_stride, gate_stride, scale_stride, _ = layout.in_vectors(*layout.strides)
    main = launch.Launch(
        ada_norm_backward_kernel,
        (layout.samples, programs),
        device,
        tokens,
        *cols,
        x_stride,
        gate_stride,
        scale_stride,
        CENTERED=centered,
        PER_TOKEN=layout.per_token,
        **rows.constants(tile, layout.vector),
    )
    tile = tiling.partials.column_sums_tile(rows.cols, device)
    sums = launch.Launch(
        ada_norm_backward_sums_kernel,
        (layout.samples, triton.cdiv(rows.cols, tile.cols)),
        device,
        programs,
        *cols,
        scale_stride,
        num_warps=tile.num_warps,
        TILE=tile._replace(vector=layout.vector),
    )
    return Backward(main, sums, programs)


def ada_norm_forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    gate: Tensor | None,
    eps: float,
    z_dtype: torch.dtype,
    out_dtype: torch.dtype,
    centered: bool,
    save_z: bool,
    save_statistics: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y in `out_dtype`; z in `z_dtype` and statistics, None where not to be saved. All are contiguous."""
    shape = x.shape
    residual, *parameters = contiguous(residual, weight, bias)
    x, modulation, layout = laid_out(x, gate, scale, shift)
    main, rows, numbers, compute_dtype = forward_launch(shape, layout, z_dtype, eps, centered, x.device)
    y = x.new_empty(shape, dtype=out_dtype)
    z = x.new_empty(shape, dtype=z_dtype) if save_z else None
    statistics = x.new_empty(rows, numbers, dtype=compute_dtype) if save_statistics else None
    launch.launch(main, x, residual, *modulation, z, y, statistics, *parameters)
    return y, z, statistics


def ada_norm_backward(
    dy: Tensor,
    dz: Tensor | None,
    z: Tensor,
    x: Tensor | None,
    scale: Tensor,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    gate: Tensor | None,
    statistics: Tensor,
    centered: bool,
    dtypes: Sequence[torch.dtype],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The wanted ones of dx, dscale, dshift, dweight, dbias, dresidual and dgate, None for the others.

    dz: the gradient that z has from elsewhere, or None. x: where there is a gate, else None.
    shift: where it has a vector for each sample, else None: the gradient of any other is dy.
    dtypes: of dx, dresidual, and of dweight and dbias.
    """
    dx_dtype, dresidual_dtype, parameter_dtype = dtypes
    want_dx, want_dscale, want_dshift, *want_parameters, want_dresidual, want_dgate = wanted
    dy, dz, *parameters = contiguous(dy, dz, weight, bias)
    shape, cols = z.shape, z.shape[-1]
    if want_dgate:
        z = z.contiguous()
        x, (gate_rows, scale_rows, _), layout = laid_out(x, gate, scale, shift)
    else:
        z, (gate_rows, scale_rows, _), layout = laid_out(z, gate, scale, shift)
        x = None
    per_token, samples = layout.per_token, layout.samples
    gate_rows = gate_rows if want_dx else None
    loads = dy, z, dz, x, gate_rows, scale if per_token.scale else None
    loaded = sum([t.element_size() for t in loads if t is not None])
    main, finish, programs = backward_launches(shape, layout, z.dtype, loaded, centered, z.device)

    def made(want: bool, like: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
        if not want:
            return None
        return torch.empty(like.shape, dtype=dtype or like.dtype, device=like.device)

    dx, dresidual = made(want_dx, dy, dx_dtype), made(want_dresidual, dy, dresidual_dtype)
    dscale, dshift, dgate = made(want_dscale, scale), made(want_dshift, shift), made(want_dgate, gate)
    of_rows = dgate if per_token.gate else None, dscale if per_token.scale else None
    of_samples = None if per_token.gate else dgate, None if per_token.scale else dscale, dshift
    needed = (
        want_parameters[0] or of_samples[1] is not None,
        want_parameters[1] or want_dshift or (of_samples[1] is not None and bias is not None),
        of_samples[0] is not None,
    )
    partials = [statistics.new_empty(samples, programs, cols) if need else None for need in needed]
    modulation = gate_rows, scale_rows, None
    gradients, of_z = (dx, dresidual, *of_rows), (statistics, None, None)
    launch.launch(main, dy, z, dz, x, *gradients, *modulation, *parameters, *of_z, *partials)
    dparameters: list[Tensor | None] = [None, None]
    if any(needed):
        of_one = samples == 1
        sums = [
            statistics.new_empty(samples, cols, dtype=parameter_dtype if of_one else None) if want else None
            for want in want_parameters
        ]
        scale_of_samples = None if per_token.scale else scale_rows
        launch.launch(finish, *partials, scale_of_samples, *parameters, *of_samples, *sums)
        if of_one:
            dparameters = [None if t is None else t.view(cols) for t in sums]
        else:
            dparameters = column_sums(sums, want_parameters, parameter_dtype)
    return dx, dscale, dshift, *dparameters, dresidual, dgate
