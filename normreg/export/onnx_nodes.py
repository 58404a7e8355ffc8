"""The ONNX nodes of each operator, a function each: of its arguments, behind `op`, which makes nodes."""

import functools
from collections.abc import Callable
from typing import Any

import onnx_ir
import torch
from onnxscript import evaluator

from normreg.export.onnx_values import (
    HAVE_FLOAT8,
    activated,
    axes,
    beside,
    cast,
    compute_dtype,
    dropped,
    normalized_by_statistics,
    normalized_channels,
    normalized_groups,
    normalized_rows,
    of_dtype,
)
from normreg.kernels.dropout.drop import scaled, unscaled
from normreg.kernels.layer_norm.float8 import LARGEST, LEAST_SCALE
from normreg.ops.dropout import CONSTANTS

TRANSLATIONS: dict[str, Callable[..., Any]] = {}  # by the operator's name


def translation(function):
    """A decorator: the function makes the nodes of the operator of its name, and returns the first results.

    Nothing in a graph reads the others: they are what a backward is given.
    """
    name = function.__name__

    @functools.wraps(function)
    def translate(*arguments, **options):
        results = function(evaluator.default().opset, *arguments, **options)
        several = len(getattr(torch.ops.normreg, name).default._schema.returns)
        if several == 1:
            return results
        results = results if isinstance(results, tuple) else (results,)
        return *results, *[onnx_ir.Value() for _ in range(several - len(results))]

    TRANSLATIONS[name] = translate
    return function


@translation
def layer_norm(op, x, weight, bias, normalized_shape, eps, out_dtype, save_statistics):
    return normalized_rows(op, x, weight, bias, len(normalized_shape), eps, True, out_dtype)


@translation
def rms_norm(op, x, weight, normalized_shape, eps, out_dtype, save_statistics):
    return normalized_rows(op, x, weight, None, len(normalized_shape), eps, False, out_dtype)


@translation
def layer_norm_channels(op, x, weight, bias, eps, out_dtype, save_statistics):
    return normalized_channels(op, x, weight, bias, eps, True, out_dtype)


@translation
def rms_norm_channels(op, x, weight, eps, out_dtype, save_statistics):
    return normalized_channels(op, x, weight, None, eps, False, out_dtype)


@translation
def layer_norm_float8(op, x, weight, bias, scale, normalized_shape, centered, eps):
    if op.version < HAVE_FLOAT8:
        raise RuntimeError(
            f"expected opset_version to be at least {HAVE_FLOAT8} for a result in float8, got {op.version}: "
            f"pass torch.onnx.export(..., opset_version={HAVE_FLOAT8})"
        )
    dims, dtype = len(normalized_shape), compute_dtype(x.dtype)
    y = normalized_rows(op, x, weight, bias, dims, eps, centered, dtype)
    y = cast(op, y, onnx_ir.DataType.FLOAT)
    if scale is None:
        magnitude = op.Where(op.IsNaN(y), op.CastLike(0.0, y), op.Abs(y))
        most = op.ReduceMax(magnitude, axes(op, range(-dims, 0)))
        scale = of_dtype(op.Max(most / LARGEST, op.CastLike(LEAST_SCALE, y)), y.dtype)
    y = op.Mul(y, op.Reciprocal(scale))
    y = op.Clip(y, op.CastLike(-LARGEST, y), op.CastLike(LARGEST, y))
    return op.Cast(y, to=onnx_ir.DataType.FLOAT8E4M3FN), scale


@translation
def batch_norm_inference(op, x, weight, bias, running_mean, running_var, eps, save_statistics):
    y = normalized_by_statistics(op, x, weight, bias, running_mean, running_var, eps)
    return cast(op, y, x.dtype)


@translation
def batch_norm_act_inference(
    op, x, weight, bias, residual, act, negative_slope, eps, running_mean, running_var, save
):
    z = normalized_by_statistics(op, x, weight, bias, running_mean, running_var, eps)
    return cast(op, activated(op, plus(op, z, residual), act, negative_slope), x.dtype)


@translation
def group_norm(op, x, weight, bias, groups, eps, out_dtype, save_statistics):
    return normalized_groups(op, x, weight, bias, groups, eps, out_dtype)


@translation
def group_norm_act(op, x, weight, bias, act, negative_slope, groups, eps, out_dtype, save_statistics):
    z = normalized_groups(op, x, weight, bias, groups, eps, None)
    return cast(op, activated(op, z, act, negative_slope), out_dtype)


@translation
def draw_seed(op, after=None, *, device):
    """A value that no node makes: none takes it, as ONNX's Dropout draws for itself."""
    return onnx_ir.Value()


@translation
def dropout(op, x, seed, p, leading, constants, linear):
    of_elements = leading is None and constants == "scaled"
    y = x if of_elements else cast(op, x, compute_dtype(x.dtype))
    return cast(op, dropped(op, y, p, leading, len(x.shape), CONSTANTS[constants]), x.dtype)


def branch(op, x, layer_scale, row_scale, p, bits, shared, scale, dtype):
    """What is added to a residual, in the dtype."""
    rank, y = len(x.shape), cast(op, x, dtype)
    if bits:
        y = dropped(op, y, p, 1 if shared else None, rank, scaled if scale else unscaled)
    if row_scale is not None:
        of_rows = len(row_scale.shape)
        row_scale = cast(op, beside(op, row_scale, rank - of_rows, of_rows), dtype)
    for factor in (row_scale, cast(op, layer_scale, dtype)):
        y = y if factor is None else of_dtype(op.Mul(y, factor), dtype)
    return y


def plus(op, y, residual):
    return y if residual is None else of_dtype(op.Add(y, cast(op, residual, y.dtype)), y.dtype)


@translation
def dropout_add(op, x, residual, layer_scale, row_scale, seed, p, bits, shared, scaled, cols, out_dtype):
    dtype = compute_dtype(out_dtype)
    y = branch(op, x, layer_scale, row_scale, p, bits, shared, scaled, dtype)
    return cast(op, plus(op, y, residual), out_dtype)


@translation
def dropout_add_norm(
    op,
    x,
    residual,
    weight,
    bias,
    layer_scale,
    row_scale,
    seed,
    p,
    bits,
    normalized_shape,
    eps,
    z_dtype,
    out_dtype,
    centered,
    save_z,
    save_statistics,
):
    dims, dtype = len(normalized_shape), compute_dtype(z_dtype)
    z = branch(op, x, layer_scale, row_scale, p, bits, False, True, dtype)
    z = cast(op, plus(op, z, residual), z_dtype)
    return normalized_rows(op, z, weight, bias, dims, eps, centered, out_dtype), z


@translation
def bias_act_dropout(op, x, bias, seed, p, bits, act, negative_slope):
    z = plus(op, cast(op, x, compute_dtype(x.dtype)), bias)
    y = activated(op, z, act, negative_slope)
    y = dropped(op, y, p, None, len(x.shape), scaled) if bits else y
    return cast(op, y, x.dtype)


@translation
def ada_norm(
    op,
    x,
    scale,
    shift,
    weight,
    bias,
    residual,
    gate,
    eps,
    z_dtype,
    out_dtype,
    centered,
    save_z,
    save_statistics,
):
    rank, dtype = len(x.shape), compute_dtype(z_dtype)

    def modulation(m):
        """A modulation as it broadcasts with x."""
        if m is not None and len(m.shape) not in (1, rank):
            m = of_dtype(op.Unsqueeze(m, axes(op, range(1, rank - 1))), m.dtype)
        return cast(op, m, dtype)

    scale, shift, gate = map(modulation, (scale, shift, gate))
    z = x
    if residual is not None:
        z = cast(op, x, dtype)
        z = z if gate is None else of_dtype(op.Mul(z, gate), dtype)
        z = cast(op, plus(op, z, residual), z_dtype)
    y = normalized_rows(op, z, weight, bias, 1, eps, centered, dtype)
    y = plus(op, of_dtype(op.Mul(y, scale + 1.0), dtype), shift)
    return cast(op, y, out_dtype), z


def turned(op, x, cos, sin, interleaved):
    """x of which the first columns of each head, as many as cos has, are turned."""
    if cos is None:
        return x
    width, last, all_ = cos.shape[-1], axes(op, (-1,)), 2**63 - 1

    def columns(x, start, end, step=1):
        return op.Slice(x, *(axes(op, (number,)) for number in (start, end, -1, step)))

    first = columns(x, 0, width)
    if interleaved:
        a, b = columns(first, 0, all_, 2), columns(first, 1, all_, 2)
        pairs = op.Concat(op.Unsqueeze(op.Neg(b), last), op.Unsqueeze(a, last), axis=-1)
        across = op.Reshape(pairs, op.Shape(first))
    else:
        a, b = columns(first, 0, width // 2), columns(first, width // 2, all_)
        across = op.Concat(op.Neg(b), a, axis=-1)
    cos, sin = (cast(op, angle, x.dtype) for angle in (cos, sin))
    first = op.Add(op.Mul(first, cos), op.Mul(across, sin))
    return of_dtype(op.Concat(first, columns(x, width, all_), axis=-1), x.dtype)


@translation
def qk_norm(
    op,
    q,
    k,
    q_weight,
    k_weight,
    q_bias,
    k_bias,
    cos,
    sin,
    eps,
    out_dtype,
    centered,
    interleaved,
    save_statistics,
):
    results = []
    for x, weight, bias in ((q, q_weight, q_bias), (k, k_weight, k_bias)):
        dtype = out_dtype if cos is None else compute_dtype(x.dtype)
        y = normalized_rows(op, x, weight, bias, 1, eps, centered, dtype)
        results.append(cast(op, turned(op, y, cos, sin, interleaved), out_dtype))
    return tuple(results)


@translation
def rms_norm_gated(
    op, x, gate, weight, bias, group_size, norm_before_gate, act, eps, out_dtype, save_statistics
):
    dtype = compute_dtype(x.dtype)
    x, weight, bias = (cast(op, t, dtype) for t in (x, weight, bias))
    gate = activated(op, cast(op, gate, dtype), act, None)
    u = x if norm_before_gate else of_dtype(op.Mul(x, gate), dtype)
    if group_size == x.shape[-1]:
        y = normalized_rows(op, u, weight, bias, 1, eps, False, dtype)
    else:
        groups = op.Concat(op.Shape(x, end=-1), axes(op, (-1, group_size)), axis=0)
        y = normalized_rows(op, of_dtype(op.Reshape(u, groups), dtype), None, None, 1, eps, False, dtype)
        y = of_dtype(op.Reshape(y, op.Shape(x)), dtype)
        y = plus(op, y if weight is None else of_dtype(op.Mul(y, weight), dtype), bias)
    return cast(op, of_dtype(op.Mul(y, gate), dtype) if norm_before_gate else y, out_dtype)
