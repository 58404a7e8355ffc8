"""Norms of the heads of queries and keys, as attention takes them: LayerNorm or RMSNorm over each head.

    q_y = norm(q) q_weight + q_bias          k_y = norm(k) k_weight + k_bias

and with rotary embedding, both turned by the angles of their positions, i against j = i + turned / 2 in the
first `turned` columns, or where they are interleaved each even i against j = i + 1:

    y[i] cos[i] - y[j] sin[i]                y[j] cos[j] + y[i] sin[j]

with the formulas of `layer_norm`, or of `layer_norm.rms_norm`, for each row: the `cols` elements of a head of
a token. Queries and keys, of which there may be fewer, share both launches. In the forward a program has a
tile of either; in the backward each adds up tiles of queries, then tiles of keys, so that there is one number
of partial sums for `column_sums`.

Inputs are read where they lie, as slices of a projection and transposed, where their rows have at most two
strides (`memory_format.heads_of`). What is written is dense, in the input's order of dimensions. Bytes in 16
bits of each element of queries and keys: 4 forward, 6 backward.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from normreg.kernels import dtypes, launch, tiling
from normreg.kernels.column_sums import column_sums
from normreg.kernels.heads import dense_heads_like, heads_of, repeats_in, without_gaps
from normreg.kernels.layer_norm import statistics_of
from normreg.kernels.memory_format import contiguous
from normreg.kernels.qk_norm.tile import (
    Backward,
    Form,
    Forward,
    qk_norm_backward_kernel,
    qk_norm_forward_kernel,
)
from normreg.kernels.tiling.heads import Heads
from normreg.kernels.tiling.rows import RowTile


def vector_of(cols: int, form: Form, q: Heads, k: Heads) -> int:
    """Elements that lie beside each other in heads, and half of the turned ones away."""
    return tiling.heads.vector(math.gcd(cols, 0 if form.interleaved else form.turned // 2), q, k)


def constants(form: Form, tile: RowTile, cols: int, vector: int) -> dict[str, object]:
    """The tile as kernels take it, and its warps."""
    tile = tile._replace(vector=vector, whole=cols == tile.cols)
    return dict(FORM=form, TILE=tile, num_warps=tile.num_warps)


@launch.kept
def forward_launch(
    q: Heads,
    k: Heads,
    positions: int,
    form: Form,
    cols: int,
    dtype: torch.dtype,
    eps: float,
    device: torch.device,
) -> launch.Launch:
    tile = tiling.heads.qk_norm_forward_tile(cols, dtype, form.turned > 0 and not form.interleaved)
    vector = vector_of(cols, form, q, k)
    return launch.Launch(
        qk_norm_forward_kernel,
        (triton.cdiv(q.rows, tile.rows) + triton.cdiv(k.rows, tile.rows),),
        device,
        *q.in_vectors(vector),
        *k.in_vectors(vector),
        positions,
        cols // vector,
        eps,
        **constants(form, tile, cols, vector),
    )


class Angles(NamedTuple):
    """cos and sin of queries or of keys, [positions, turned] each, and how many heads share a position."""

    cos: Tensor | None
    sin: Tensor | None
    group: int | None


def angles_of(cos: Tensor | None, sin: Tensor | None, q: Tensor, k: Tensor) -> tuple[Angles, Angles, int]:
    """The angles of q and of k, which are as `dense_heads_like` makes them, and how many positions there are.

    Angles that no position of a token gives are laid out anew, for each row.
    """
    if cos is None or sin is None:
        absent = Angles(None, None, None)
        return absent, absent, 1
    q_repeats, k_repeats = (repeats_in(x.shape, x.stride(), cos.shape) for x in (q, k))
    if q_repeats and k_repeats and q_repeats[1] == k_repeats[1]:
        both = cos.contiguous(), sin.contiguous()
        return Angles(*both, q_repeats[0]), Angles(*both, k_repeats[0]), q_repeats[1]
    of_rows = [
        Angles(*(dense_heads_like(x[..., : t.shape[-1]], t.dtype).copy_(t) for t in (cos, sin)), group=1)
        for x in (q, k)
    ]
    return *of_rows, max(q.shape[:-1].numel(), k.shape[:-1].numel())


def form_of(cols: int, cos: Tensor | None, centered: bool, interleaved: bool) -> Form:
    if cos is None:
        return Form(centered)
    turned = cos.shape[-1]
    return Form(centered, turned, interleaved, turned == cols)


def of_forward(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    angles: Angles,
    centered: bool,
    save_statistics: bool,
) -> tuple[Forward, Heads]:
    cos, sin, group = angles
    x, heads = heads_of(x, y, group)
    statistics = None
    if save_statistics:
        dtype = dtypes.compute_dtype(x.dtype)
        statistics = x.new_empty(heads.rows, statistics_of(centered), dtype=dtype)
    return Forward(x, y, statistics, *contiguous(weight, bias), cos, sin), heads


def qk_norm_forward(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    q_bias: Tensor | None,
    k_bias: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
    centered: bool,
    interleaved: bool,
    save_statistics: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Both results in `out_dtype`, and statistics of each row of both, None where not to be saved."""
    q_y, k_y = dense_heads_like(q, out_dtype), dense_heads_like(k, out_dtype)
    q_angles, k_angles, positions = angles_of(cos, sin, q_y, k_y)
    of_q, q_heads = of_forward(q, q_y, q_weight, q_bias, q_angles, centered, save_statistics)
    of_k, k_heads = of_forward(k, k_y, k_weight, k_bias, k_angles, centered, save_statistics)
    form = form_of(q.shape[-1], cos, centered, interleaved)
    sizes = q_heads, k_heads, positions, form, q.shape[-1]
    launch.launch(forward_launch(*sizes, q.dtype, eps, q.device), *of_q, *of_k)
    return q_y, k_y, of_q.statistics, of_k.statistics


@launch.kept
def backward_launch(
    q: Heads,
    k: Heads,
    positions: int,
    form: Form,
    cols: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[launch.Launch, int]:
    """And how many programs add up rows."""
    tile = tiling.heads.qk_norm_backward_tile(cols, dtype)
    vector = vector_of(cols, form, q, k)
    programs = tiling.heads.qk_norm_programs(tile, q, k, device)
    main = launch.Launch(
        qk_norm_backward_kernel,
        (1, programs),
        device,
        *q.in_vectors(vector),
        *k.in_vectors(vector),
        positions,
        cols // vector,
        **constants(form, tile, cols, vector),
    )
    return main, programs


def of_backward(
    dy: Tensor | None,
    x: Tensor,
    dx: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    angles: Angles,
    programs: int,
    wanted: Sequence[bool],
) -> Backward:
    if dy is None or not any(wanted):
        return Backward(*[None] * len(Backward._fields))
    want_dx, *want_parameters = wanted
    partials = [statistics.new_empty(programs, x.shape[-1]) if want else None for want in want_parameters]
    dy, (weight,) = without_gaps(dy, dx), contiguous(weight)
    return Backward(dy, x, dx if want_dx else None, weight, statistics, *partials, angles.cos, angles.sin)


def qk_norm_backward(
    dq_y: Tensor,
    dk_y: Tensor | None,
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    q_statistics: Tensor,
    k_statistics: Tensor,
    centered: bool,
    interleaved: bool,
    parameter_dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The wanted ones of dq, dk, dq_weight, dk_weight, dq_bias and dk_bias, None for the others.

    dk_y: None where no gradient reaches keys, which then have none.
    """
    dtype = max(q.dtype, dq_y.dtype, key=lambda d: d.itemsize)
    dq, dk = dense_heads_like(q, q.dtype), dense_heads_like(k, k.dtype)
    q_angles, k_angles, positions = angles_of(cos, sin, dq, dk)
    (q, q_heads), (k, k_heads) = heads_of(q, dq, q_angles.group), heads_of(k, dk, k_angles.group)
    form = form_of(q.shape[-1], cos, centered, interleaved)
    sizes = q_heads, k_heads, positions, form, q.shape[-1]
    main, programs = backward_launch(*sizes, dtype, q.device)
    of_q = of_backward(dq_y, q, dq, q_weight, q_statistics, q_angles, programs, wanted[::2])
    of_k = of_backward(dk_y, k, dk, k_weight, k_statistics, k_angles, programs, wanted[1::2])
    launch.launch(main, *of_q, *of_k)
    sums: list[Tensor | None] = []
    for partials in ((of_q.dweight, of_k.dweight), (of_q.dbias, of_k.dbias)):
        sums += column_sums(partials, [partial is not None for partial in partials], parameter_dtype)
    return of_q.dx, of_k.dx, *sums
