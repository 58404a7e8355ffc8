"""Dropout and sum as an autograd.Function and as operators. Formulas: `normreg.kernels.dropout.add`."""

import torch

from normreg.kernels.device.branch import Branch
from normreg.kernels.device.channels import dense, in_format_of
from normreg.kernels.dropout import add as kernels
from normreg.kernels.launch import contiguous
from normreg.ops import gradient, operator, seed


def in_place_order(x, residual, layer_scale, row_scale, bits, shared):
    """x and residual as the kernels take them: contiguous or, where only samples matter, channels-last."""
    of_samples = (shared or bits == 0) and (row_scale is None or row_scale.dim() == 1)
    x = dense(x) if of_samples and layer_scale is None else x.contiguous()
    return x, None if residual is None else in_format_of(x, residual)


def _forward(x, residual, layer_scale, row_scale, seed_, p, bits, shared, scaled, cols, out_dtype):
    x, residual = in_place_order(x, residual, layer_scale, row_scale, bits, shared)
    scales = contiguous(layer_scale, row_scale)
    return kernels.dropout_add(x, residual, *scales, Branch(p, bits, shared, scaled), seed_, out_dtype, cols)


def _backward(dz, x, layer_scale, row_scale, seed_, p, bits, shared, scaled, want_dx):
    rule = Branch(p, bits, shared, scaled)
    scales = contiguous(layer_scale, row_scale)
    dx, dlayer_scale = kernels.dropout_add_backward(
        dz.contiguous(), x.contiguous(), *scales, rule, seed_, want_dx
    )
    return dx, dlayer_scale.view(layer_scale.shape)


def draw(x, bits, generator):
    """The seed of a call that drops something, else None."""
    return seed.draw(x.device, generator) if bits else None


def gradients(dz, x, layer_scale, row_scale, seed_, rule, cols, x_dtype, wanted):
    """The wanted ones of dx and dlayer_scale, None for the others."""
    want_dx, want_dlayer_scale = wanted
    if not any(wanted):
        return None, None
    bits = rule[1]
    if bits == 0 and layer_scale is None and row_scale is None:
        return dz.to(x_dtype), None
    if gradient.wants_formula(dz):
        return _formula(dz, x, layer_scale, row_scale, seed_, rule, cols, x_dtype, wanted)
    traces = operator.traces(dz)
    if want_dlayer_scale:
        backward = OPERATOR_BACKWARD if traces else _backward
        return backward(dz, x, layer_scale, row_scale, seed_, *rule, want_dx)
    forward = OPERATOR if traces else _forward
    return forward(dz, None, layer_scale, row_scale, seed_, *rule, cols, x_dtype), None


def _formula(dz, x, layer_scale, row_scale, seed_, rule, cols, x_dtype, wanted):
    want_dx, want_dlayer_scale = wanted
    given = None, row_scale, seed_, *rule, cols, dz.dtype  # no layer scale
    dx = dlayer_scale = None
    if want_dx:
        if gradient.is_batched(dz):
            ones = torch.ones(dz.shape, dtype=dz.dtype, device=dz.device)
            dx = dz * _forward(ones, None, *given)
        else:
            dx = DropoutAddFunction.apply(dz, None, *given)
        dx = (dx if layer_scale is None else dx * layer_scale).to(x_dtype)
    if want_dlayer_scale:
        branch = DropoutAddFunction.apply(x, None, *given)
        dims = tuple(range(x.dim() - layer_scale.dim()))
        dlayer_scale = gradient.sum_over(dz * branch, dims).to(layer_scale.dtype)
    return dx, dlayer_scale


class DropoutAddFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        DropoutAddFunction.save(ctx, inputs)
        return _forward(*inputs)

    @staticmethod
    def save(ctx, inputs, output=None):
        x, residual, layer_scale, row_scale, seed_, *rule, ctx.cols, _ = inputs
        ctx.rule, ctx.dtypes = tuple(rule), (x.dtype, None if residual is None else residual.dtype)
        seed.save(ctx, seed_, None if layer_scale is None else x, layer_scale, row_scale)

    @staticmethod
    def backward(ctx, dz):
        want_dx, want_dresidual, want_dlayer_scale = ctx.needs_input_grad[:3]
        (x, layer_scale, row_scale), seed_ = seed.saved(ctx, dz)
        x_dtype, residual_dtype = ctx.dtypes
        dx, dlayer_scale = gradients(
            dz, x, layer_scale, row_scale, seed_, ctx.rule, ctx.cols, x_dtype, (want_dx, want_dlayer_scale)
        )
        return dx, dz.to(residual_dtype) if want_dresidual else None, dlayer_scale, *[None] * 8


def fake_forward(x, residual, layer_scale, row_scale, seed_, p, bits, shared, scaled, cols, out_dtype):
    x, _ = in_place_order(x, None, layer_scale, row_scale, bits, shared)
    return torch.empty_like(x, dtype=out_dtype)


def fake_backward(dz, x, layer_scale, row_scale, seed_, p, bits, shared, scaled, want_dx):
    return x.new_empty(x.shape) if want_dx else None, layer_scale.new_empty(layer_scale.shape)


RULE = "Tensor? seed, float p, int bits, bool shared, bool scaled"
OPERATOR = operator.register(
    f"dropout_add(Tensor x, Tensor? residual, Tensor? layer_scale, Tensor? row_scale, {RULE}, SymInt cols, "
    "ScalarType out_dtype) -> Tensor",
    _forward, fake_forward, DropoutAddFunction,
)  # fmt: skip
OPERATOR_BACKWARD = operator.register(
    f"dropout_add_backward(Tensor dz, Tensor x, Tensor layer_scale, Tensor? row_scale, {RULE}, bool want_dx) "
    "-> (Tensor dx, Tensor dlayer_scale)",
    _backward, fake_backward,
)  # fmt: skip


def dropout_add(x, residual, layer_scale, row_scale, rule, generator):
    """z in the dtype that x and residual are promoted to."""
    samples = kernels.samples_of(x, rule, row_scale)
    _, cols = kernels.rows_and_cols(x, samples, layer_scale)
    out_dtype = torch.promote_types(x.dtype, residual.dtype)
    seed_ = draw(x, rule.bits, generator)
    arguments = (x, residual, layer_scale, row_scale, seed_, *rule, cols, out_dtype)
    if torch.compiler.is_compiling():
        return OPERATOR(*arguments)
    if gradient.wants_gradient(x, residual, layer_scale):
        return DropoutAddFunction.apply(*arguments)
    return _forward(*arguments)
