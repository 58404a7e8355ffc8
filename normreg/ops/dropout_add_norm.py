"""Dropout, sum and normalisation as an autograd.Function and as operators.

The formulas are in `normreg.kernels.dropout.add_norm`.
"""

import math

import torch

from normreg.kernels.device.branch import Branch
from normreg.kernels.dropout import add_norm as kernels
from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.launch import contiguous
from normreg.ops import dropout_add, gradient, operator
from normreg.ops.seed import save as save_seed
from normreg.ops.seed import saved as saved_seed


def _forward(
    x, residual, weight, bias, layer_scale, row_scale, seed, p, bits,
    normalized_shape, eps, z_dtype, out_dtype, centered, save_z, save_statistics,
):  # fmt: skip
    tensors = contiguous(x, residual, weight, bias, layer_scale, row_scale)
    y, z, mean, rstd = kernels.dropout_add_norm_forward(
        *tensors, seed, Branch(p, bits), math.prod(normalized_shape), eps, z_dtype, out_dtype, centered,
        save_z, save_statistics,
    )  # fmt: skip
    return y, z if save_z else None, mean, rstd


def _backward(
    dy, dz, z, x, weight, layer_scale, row_scale, mean, rstd, seed, p, bits,
    normalized_shape, dx_dtype, dresidual_dtype, parameter_dtype, wanted,
):  # fmt: skip
    tensors = contiguous(dy, dz, z, x, weight, layer_scale, row_scale)
    dtypes = dx_dtype, dresidual_dtype, parameter_dtype
    dx, dresidual, *parameters = kernels.dropout_add_norm_backward(
        *tensors, mean, rstd, seed, Branch(p, bits), math.prod(normalized_shape), dtypes, wanted
    )
    return dx, dresidual, *(None if grad is None else grad.view(normalized_shape) for grad in parameters)


class DropoutAddNormFunction(torch.autograd.Function):
    """Of y and z, of which z is kept for the backward, and so is to be among the results."""

    @staticmethod
    def forward(ctx, *inputs):
        output = _forward(*inputs)
        ctx.set_materialize_grads(False)
        DropoutAddNormFunction.save(ctx, inputs, output)
        return output[:2]

    @staticmethod
    def save(ctx, inputs, output):
        x, residual, weight, bias, layer_scale, row_scale, seed, p, bits, *rest = inputs
        ctx.normalized_shape, ctx.eps, *_ = rest
        _, z, mean, rstd = output
        parameter = bias if weight is None else weight
        ctx.rule = p, bits
        ctx.dtypes = (
            x.dtype,
            x.dtype if residual is None else residual.dtype,
            x.dtype if parameter is None else parameter.dtype,
        )
        scales_nothing = bits == 0 and layer_scale is None and row_scale is None
        ctx.dx_is_dresidual = scales_nothing and ctx.dtypes[0] == ctx.dtypes[1]
        x = None if layer_scale is None else x
        save_seed(ctx, seed, z, x, weight, layer_scale, row_scale, mean, rstd)

    @staticmethod
    def backward(ctx, dy, dz, *_):
        absent = (None,) * 11
        if dy is None and dz is None:
            return *absent, *[None] * 5
        wanted = ctx.needs_input_grad[:5]
        saved, seed = saved_seed(ctx, dz if dy is None else dy)
        z, x, weight, layer_scale, row_scale, mean, rstd = saved
        if dy is None or gradient.wants_formula(dy) or (dz is not None and gradient.wants_formula(dz)):
            centered = mean is not None
            grads = _formula(ctx, dy, dz, z, x, weight, layer_scale, row_scale, centered, seed, wanted)
            return *grads, *absent
        one = ctx.dx_is_dresidual
        want_dx, want_dresidual, *others = wanted
        wanted = (False, want_dx or want_dresidual, *others) if one else wanted
        backward = OPERATOR_BACKWARD if operator.traces(dy) else _backward
        dx, dresidual, *grads = backward(
            dy, dz, z, x, weight, layer_scale, row_scale, mean, rstd, seed, *ctx.rule, ctx.normalized_shape,
            *ctx.dtypes, wanted,
        )  # fmt: skip
        if one:
            dx, dresidual = dresidual if want_dx else None, dresidual if want_dresidual else None
        return dx, dresidual, *grads, *absent


def _formula(ctx, dy, dz, z, x, weight, layer_scale, row_scale, centered, seed, wanted):
    want_dx, want_dresidual, *want_parameters, want_dlayer_scale = wanted
    dweight = dbias = None
    if dy is not None:
        dims = tuple(range(-len(ctx.normalized_shape), 0))
        leading = tuple(range(z.dim() - len(dims)))
        mean, rstd = gradient.statistics(z, dims, ctx.eps, centered)
        of_norm, dweight, dbias = gradient.normalization_backward(
            dy, z, weight, mean, rstd, dims, leading, (True, *want_parameters)
        )
        dweight, dbias = (None if grad is None else grad.to(ctx.dtypes[2]) for grad in (dweight, dbias))
        dz = of_norm if dz is None else of_norm + dz
    dx, dlayer_scale = dropout_add.gradients(
        dz, x, layer_scale, row_scale, seed, (*ctx.rule, False, True), math.prod(ctx.normalized_shape),
        ctx.dtypes[0], (want_dx, want_dlayer_scale),
    )  # fmt: skip
    return dx, dz.to(ctx.dtypes[1]) if want_dresidual else None, dweight, dbias, dlayer_scale


def fake_forward(
    x, residual, weight, bias, layer_scale, row_scale, seed, p, bits,
    normalized_shape, eps, z_dtype, out_dtype, centered, save_z, save_statistics,
):  # fmt: skip
    y = x.new_empty(x.shape, dtype=out_dtype)
    z = x.new_empty(x.shape, dtype=z_dtype) if save_z else None
    if not save_statistics:
        return y, z, None, None
    rows = math.prod(x.shape[: x.dim() - len(normalized_shape)])
    mean, rstd = (x.new_empty(rows, dtype=compute_dtype(z_dtype)) for _ in range(2))
    return y, z, mean if centered else None, rstd


def fake_backward(
    dy, dz, z, x, weight, layer_scale, row_scale, mean, rstd, seed, p, bits,
    normalized_shape, dx_dtype, dresidual_dtype, parameter_dtype, wanted,
):  # fmt: skip
    dtypes = dx_dtype, dresidual_dtype, parameter_dtype, parameter_dtype
    scale_dtype = None if layer_scale is None else layer_scale.dtype
    shapes = z.shape, z.shape, *[normalized_shape] * 3
    return tuple(
        z.new_empty(shape, dtype=dtype) if want else None
        for want, shape, dtype in zip(wanted, shapes, (*dtypes, scale_dtype))
    )


OPERATOR = operator.register(
    "dropout_add_norm(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? layer_scale, "
    "Tensor? row_scale, Tensor? seed, float p, int bits, SymInt[] normalized_shape, float eps, "
    "ScalarType z_dtype, ScalarType out_dtype, bool centered, bool save_z, bool save_statistics) "
    "-> (Tensor y, Tensor z, Tensor mean, Tensor rstd)",
    _forward, fake_forward, DropoutAddNormFunction, differentiable=2,
)  # fmt: skip
OPERATOR_BACKWARD = operator.register(
    "dropout_add_norm_backward(Tensor dy, Tensor? dz, Tensor z, Tensor? x, Tensor? weight, "
    "Tensor? layer_scale, Tensor? row_scale, Tensor? mean, Tensor rstd, Tensor? seed, float p, int bits, "
    "SymInt[] normalized_shape, ScalarType dx_dtype, ScalarType dresidual_dtype, "
    "ScalarType parameter_dtype, bool[5] wanted) "
    "-> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias, Tensor dlayer_scale)",
    _backward, fake_backward,
)  # fmt: skip


def dropout_add_norm(
    x, residual, weight, bias, layer_scale, row_scale, rule, generator,
    normalized_shape, eps, z_dtype, out_dtype, centered, prenorm,
):  # fmt: skip
    """y, and z, None where it is neither wanted nor kept."""
    wants_gradient = gradient.wants_gradient(x, residual, weight, bias, layer_scale)
    seed = dropout_add.draw(x, rule.bits, generator)
    arguments = (
        x, residual, weight, bias, layer_scale, row_scale, seed, rule.p, rule.bits,
        normalized_shape, eps, z_dtype, out_dtype, centered, prenorm or wants_gradient, wants_gradient,
    )  # fmt: skip
    if torch.compiler.is_compiling():
        return OPERATOR(*arguments)[:2]
    if wants_gradient:
        return DropoutAddNormFunction.apply(*arguments)
    return _forward(*arguments)[:2]
