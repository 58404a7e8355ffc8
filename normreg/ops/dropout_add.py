"""Dropout and sum. The formulas are in `normreg.kernels.dropout.add`."""

import functools

import torch
from torch import Tensor

from normreg.kernels.dropout import add as kernels
from normreg.kernels.dropout.drop import Drop
from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.memory_format import dense, in_format_of
from normreg.ops import gradient, seed
from normreg.ops.operation import Operation, Operator, Seed, is_batched
from normreg.ops.random import keep_mask


def in_place_order(x, residual, layer_scale, row_scale, bits, shared):
    """x and residual as the kernels take them: contiguous or, where only samples matter, channels-last."""
    of_samples = (shared or bits == 0) and (row_scale is None or row_scale.dim() == 1)
    x = dense(x) if of_samples and layer_scale is None else x.contiguous()
    return x, None if residual is None else in_format_of(x, residual)


def run(
    x: Tensor,
    residual: Tensor | None,
    layer_scale: Tensor | None,
    row_scale: Tensor | None,
    seed: Seed | None,
    p: float,
    bits: int,
    shared: bool,
    scaled: bool,
    cols: int,
    out_dtype: torch.dtype,
) -> Tensor:
    x, residual = in_place_order(x, residual, layer_scale, row_scale, bits, shared)
    drop = Drop(p, bits, shared, scaled)
    return kernels.dropout_add(x, residual, layer_scale, row_scale, drop, seed, out_dtype, cols)


def run_backward(
    dz: Tensor,
    x: Tensor,
    layer_scale: Tensor,
    row_scale: Tensor | None,
    seed: Seed | None,
    p: float,
    bits: int,
    shared: bool,
    scaled: bool,
    want_dx: bool,
) -> tuple[Tensor | None, Tensor]:
    drop = Drop(p, bits, shared, scaled)
    dx, dlayer_scale = kernels.dropout_add_backward(dz, x, layer_scale, row_scale, drop, seed, want_dx)
    return dx, dlayer_scale.view(layer_scale.shape)


def fake(x, layer_scale, row_scale, bits, shared, out_dtype):
    x, _ = in_place_order(x, None, layer_scale, row_scale, bits, shared)
    return torch.empty_like(x, dtype=out_dtype)


def fake_backward(x, layer_scale, want_dx):
    return x.new_empty(x.shape) if want_dx else None, layer_scale.new_empty(layer_scale.shape)


def draw(x, bits, generator):
    """The seed of a call that drops something, else None."""
    return seed.draw(x.device, generator) if bits else None


def gradients_of_branch(dz, x, layer_scale, row_scale, seed, rule, cols, x_dtype, wanted, by_formula):
    """The wanted ones of dx and dlayer_scale, None for the others."""
    want_dx, want_dlayer_scale = wanted
    if not any(wanted):
        return None, None
    _, bits, _, _ = rule
    if bits == 0 and layer_scale is None and row_scale is None:
        return dz.to(x_dtype), None
    if by_formula:
        return formula_of_branch(dz, x, layer_scale, row_scale, seed, rule, cols, x_dtype, wanted)
    if want_dlayer_scale:
        return backward(dz, x, layer_scale, row_scale, seed, *rule, want_dx)
    return Operator.__call__(recorded, dz, None, layer_scale, row_scale, seed, *rule, cols, x_dtype), None


def formula_of_branch(dz, x, layer_scale, row_scale, seed, rule, cols, x_dtype, wanted):
    want_dx, want_dlayer_scale = wanted
    given = None, row_scale, seed, *rule, cols, dz.dtype  # no layer scale
    dx = dlayer_scale = None
    if want_dx:
        if is_batched(dz):
            ones = torch.ones(dz.shape, dtype=dz.dtype, device=dz.device)
            dx = dz * run(ones, None, *given)
        else:
            dx = recorded(dz, None, *given)
        dx = (dx if layer_scale is None else dx * layer_scale).to(x_dtype)
    if want_dlayer_scale:
        branch = recorded(x, None, *given)
        dims = tuple(range(x.dim() - layer_scale.dim()))
        dlayer_scale = gradient.sum_over(dz * branch, dims).to(layer_scale.dtype)
    return dx, dlayer_scale


def branch(x, layer_scale, row_scale, seed, drop, cols, dtype):
    """What is added to the residual, in torch's operations, x's shape kept; None of the tensors has to be."""
    samples = drop.samples_of(x, row_scale)
    _, threshold, scale = drop.numbers(1, 1)
    rows = x.to(dtype).reshape(samples, -1, cols)
    factor = None if row_scale is None else row_scale.to(dtype).view(samples, 1, 1)
    if drop.bits:
        factor = scale if factor is None else factor * scale
    rows = rows if factor is None else rows * factor
    if drop.bits:
        sizes = (1, samples) if drop.shared else (samples * rows.shape[1], cols)
        keep = keep_mask(seed, *sizes, threshold, drop.bits)
        rows = torch.where(keep.view(samples, *((1, 1) if drop.shared else rows.shape[1:])), rows, 0.0)
    if layer_scale is not None:
        rows = rows * layer_scale.to(dtype).reshape(cols)
    return rows.reshape(x.shape)


def decomposed(x, residual, layer_scale, row_scale, seed, p, bits, shared, scaled, cols, out_dtype):
    drop, dtype = Drop(p, bits, shared, scaled), compute_dtype(out_dtype)
    z = branch(x, layer_scale, row_scale, seed, drop, cols, dtype)
    return z if residual is None else z + residual.to(dtype)


def branch_backward(dz, x, layer_scale, row_scale, seed, drop, cols):
    """dx and, where there is a layer scale and x is given, its gradient."""
    dtype, dlayer_scale = dz.dtype, None
    if x is not None:
        product = dz * branch(x, None, row_scale, seed, drop, cols, dtype)
        dlayer_scale = product.reshape(-1, cols).sum(0).view(layer_scale.shape)
    return branch(dz, layer_scale, row_scale, seed, drop, cols, dtype), dlayer_scale


def decomposed_backward(dz, x, layer_scale, row_scale, seed, p, bits, shared, scaled):
    drop = Drop(p, bits, shared, scaled)
    dz = dz.to(compute_dtype(dz.dtype))
    return branch_backward(dz, x, layer_scale, row_scale, seed, drop, layer_scale.numel())


def gradients(
    dz,
    x,
    layer_scale,
    row_scale,
    seed,
    p,
    bits,
    shared,
    scaled,
    cols,
    x_dtype,
    residual_dtype,
    wanted,
    by_formula=False,
):
    want_dx, want_dresidual, *want_dlayer_scale = wanted
    rule, wanted = (p, bits, shared, scaled), (want_dx, *want_dlayer_scale)
    dx, dlayer_scale = gradients_of_branch(
        dz, x, layer_scale, row_scale, seed, rule, cols, x_dtype, wanted, by_formula
    )
    return dx, dz.to(residual_dtype) if want_dresidual else None, dlayer_scale


@functools.wraps(gradients)
def formula(*values):
    return gradients(*values, by_formula=True)


backward = Operator(
    "dropout_add_backward",
    run_backward,
    fake_backward,
    ("dx", "dlayer_scale"),
    decomposition=decomposed_backward,
)
recorded = Operation(
    "dropout_add",
    run,
    fake,
    ("z",),
    gradients,
    formula,
    gradients=3,
    dtypes={"x_dtype": ("x",), "residual_dtype": ("residual", "x")},
    keep={"x": lambda x, layer_scale: None if layer_scale is None else x},
    decomposition=decomposed,
)


def dropout_add(x, residual, layer_scale, row_scale, rule, generator):
    """z in the dtype that x and residual are promoted to."""
    samples = rule.samples_of(x, row_scale)
    _, cols = kernels.rows_and_cols(x, samples, layer_scale)
    out_dtype = torch.promote_types(x.dtype, residual.dtype)
    drawn = draw(x, rule.bits, generator)
    return recorded(x, residual, layer_scale, row_scale, drawn, *rule, cols, out_dtype)
