"""Dropout with what stands before and after it in residual blocks, in the launches of one operation."""

import functools

import torch
import torch.fx
import torch.nn.functional as F

from normreg.functional import dispatch
from normreg.kernels.device.branch import of_elements, of_samples
from normreg.kernels.dtypes import compute_dtype
from normreg.ops import autocast
from normreg.ops import bias_act_dropout as _bias_act_dropout
from normreg.ops import dropout as _dropout
from normreg.ops import dropout_add as _dropout_add
from normreg.ops.activations import activation_in_torch, check_activation
from normreg.ops.dropout_add_norm import dropout_add_norm as _dropout_add_norm
from normreg.ops.layer_norm import layer_norm as _layer_norm
from normreg.ops.rms_norm import rms_norm as _rms_norm


def _one_call_when_traced(function):
    """torch.fx records the call, not what is inside, which asks for shapes."""

    @functools.wraps(function)
    def call(*arguments, **options):
        if arguments and isinstance(arguments[0], torch.fx.Proxy):
            return arguments[0].tracer.create_proxy("call_function", call, arguments, options)
        return function(*arguments, **options)

    return call


def check_generator(input, generator):
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"expected generator to be a torch.Generator or None, got {type(generator).__name__}: make one "
            f"with torch.Generator(input.device)"
        )
    if not isinstance(input, torch.Tensor):
        raise TypeError(
            f"expected a torch.Tensor to draw a mask for, got {type(input).__name__}: leave generator out"
        )
    # a tensor on meta has no mask
    if input.device.type != "meta" and generator.device != input.device:
        raise RuntimeError(
            f"expected a generator of the input's device, {input.device}, got one of {generator.device}: "
            f"make it with torch.Generator({str(input.device)!r})"
        )


def _dropout_in_torch(x, p, generator, drop_path=None):
    """torch's dropout; timm's drop_path where that is the rule."""
    if drop_path is not None:
        return x if p == 0 else _dropout.in_torch(x, drop_path, generator=generator)
    F.dropout(x, p, training=False)  # judges p
    if generator is None or p in (0, 1) or x.numel() == 0:
        return F.dropout(x, p)
    return _dropout.in_torch(x, _dropout.Rule(p), generator=generator)


def _branch_in_torch(x, p, layer_scale, row_scale, generator, drop_path=None):
    branch = _dropout_in_torch(x, p, generator, drop_path)
    if row_scale is not None:
        branch = branch * row_scale.view(*row_scale.shape, *[1] * (x.dim() - row_scale.dim())).to(x.dtype)
    return branch if layer_scale is None else branch * layer_scale.to(x.dtype)


def _check_scales(x, scaled_shape, layer_scale, row_scale):
    """Of what torch would broadcast in silence."""
    if layer_scale is not None and layer_scale.shape != scaled_shape:
        raise ValueError(
            f"expected layer_scale of shape {tuple(scaled_shape)}, got {tuple(layer_scale.shape)}: it "
            "has one value for each element of a row"
        )
    leading = x.shape[: x.dim() - len(scaled_shape)]
    if row_scale is not None and (row_scale.dim() == 0 or row_scale.shape != leading[: row_scale.dim()]):
        raise ValueError(
            f"expected row_scale's shape to be {tuple(leading)} or the beginning of it, got "
            f"{tuple(row_scale.shape)}: it has one value for each row or sample"
        )


def _check_residual(x, residual):
    if not isinstance(residual, torch.Tensor) or residual.shape != x.shape:
        got = list(residual.shape) if isinstance(residual, torch.Tensor) else type(residual).__name__
        raise ValueError(
            f"expected a residual of the input's shape {list(x.shape)}, got {got}: expand it first"
        )


@_one_call_when_traced
def dropout_add(input, residual, p=0.5, training=True, *, row_scale=None, layer_scale=None, generator=None):
    r"""Dropout, then the sum with a residual: the end of a residual branch, in one launch.

    z = residual + dropout(x) * row_scale * layer_scale. Reads x and the residual and writes z; the backward
    draws the mask again, and keeps x only for the gradient of layer_scale.

    Args:
        input: (N, *, C), float16, bfloat16, float32 or float64, any strides.
        residual: of input's shape and a floating-point dtype.
        p, training, generator: those of `dropout`. For p = 0 and without training nothing is dropped.
        row_scale: what multiplies each row or sample, of a shape that input's begins with, such as (N,), and
            has fewer dimensions. One that requires a gradient takes torch's path.
        layer_scale: (C,), of input's dtype, or float32 beside 16 bits.

    Returns a tensor of input's shape, in the dtype that both are promoted to. Where the kernel does not apply
    (`normreg.functional.dispatch`), this is the equivalent below. Raises ValueError for p outside [0, 1]
    and for another shape of residual, row_scale or layer_scale; TypeError and RuntimeError for a generator
    that is none, or of another device.

    Equivalent::

        z = residual + F.dropout(x, p, training) * row_scale[:, None] * layer_scale

    Sources: Srivastava et al., "Dropout" (JMLR 2014); layer scale: Touvron et al., "Going deeper with Image
    Transformers" (ICCV 2021), arXiv 2103.17239
    """
    p = p if training else 0.0
    return _sum(input, residual, p, row_scale, layer_scale, generator, None)


@_one_call_when_traced
def drop_path_add(
    x, residual, drop_prob=0.0, training=False, scale_by_keep=True, *, layer_scale=None, generator=None
):
    r"""`drop_path` (stochastic depth), then the sum with a residual, in one launch.

    z = residual + drop_path(x) * layer_scale, for pre-norm blocks whose norm lives elsewhere.

    Args:
        x, drop_prob, training, scale_by_keep, generator: those of `drop_path`; x is (N, *, C).
        residual, layer_scale: those of `dropout_add`.

    Returns and raises what `dropout_add` does, but RuntimeError for drop_prob outside [0, 1]. A channels-last
    x stays so, without a copy, where there is no layer scale.

    Equivalent::

        z = residual + drop_path(x, drop_prob, training) * layer_scale

    Source: Huang et al., "Deep Networks with Stochastic Depth" (ECCV 2016), arXiv 1603.09382
    """
    p = drop_prob if training else 0.0
    rule = _dropout.Rule(p, 1, "scaled" if scale_by_keep else "unscaled")
    return _sum(x, residual, p, None, layer_scale, generator, rule)


def _sum(x, residual, p, row_scale, layer_scale, generator, drop_path):
    _check_residual(x, residual)
    _check_scales(x, x.shape[-1:], layer_scale, row_scale)
    if generator is not None:
        check_generator(x, generator)
    if dispatch.dropout_add(x, residual, p, layer_scale, row_scale):
        return residual + _branch_in_torch(x, p, layer_scale, row_scale, generator, drop_path)
    rule = of_elements(p, x.dtype)
    if drop_path is not None and p:
        rule = of_samples(p, drop_path.constants == "scaled")
    return _dropout_add.dropout_add(x, residual, layer_scale, row_scale, rule, generator)


def _z_dtype(x, residual, residual_in_fp32):
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    return torch.promote_types(dtype, torch.float32) if residual_in_fp32 else dtype


def _z_in_torch(x, residual, p, row_scale, layer_scale, generator, z_dtype):
    z = _branch_in_torch(x, p, layer_scale, row_scale, generator).to(z_dtype)
    return z if residual is None else z + residual


def _norm_in_torch(norm, z, dtype, normalized_shape, *parameters_and_eps):
    """In `dtype`, or in autocast's where z has it."""
    if z.dtype == dtype:
        return norm(z, normalized_shape, *parameters_and_eps)
    *parameters, eps = parameters_and_eps
    parameters = (None if parameter is None else parameter.to(z.dtype) for parameter in parameters)
    return norm(z, normalized_shape, *parameters, eps).to(dtype)


@_one_call_when_traced
def dropout_add_layer_norm(
    input, residual, normalized_shape, weight=None, bias=None, p=0.5, training=True, eps=1e-5,
    *, prenorm=False, residual_in_fp32=False, row_scale=None, layer_scale=None, generator=None,
):  # fmt: skip
    r"""Dropout, the sum with a residual and LayerNorm in the launches of LayerNorm.

    z = residual + dropout(x) * row_scale * layer_scale and y = layer_norm(z). The forward reads x and the
    residual and writes z and y; the backward reads dy and z, writes both gradients and draws the mask again.
    Kept for it are z and the rows' mean and rstd; x as well where there is a layer scale.

    Args:
        input: (*, *normalized_shape), float16, bfloat16, float32 or float64, any strides.
        residual: of input's shape and a floating-point dtype, or None for 0.
        normalized_shape, weight, bias, eps: those of `layer_norm`.
        p, training, generator: those of `dropout`. For p = 0 and without training nothing is dropped.
        prenorm: return z as well, the residual of the next block.
        residual_in_fp32: z is float32 beside 16 bits.
        row_scale: what multiplies each row or sample, of a shape that the leading one begins with, such as
            (N,): stochastic depth. One that requires a gradient takes torch's path.
        layer_scale: of shape normalized_shape, of input's dtype, or float32 beside 16 bits.

    Returns y, in input's dtype (float32 where CUDA's autocast is on and z has input's dtype), or with prenorm
    (y, z). z has the dtype that input and residual are promoted to, and is rounded to it before it is
    normalised. Where the kernel does not apply (`normreg.functional.dispatch`), this is the equivalent
    below. Raises ValueError for p outside [0, 1] and another shape of residual, row_scale or layer_scale,
    and what `dropout` and `layer_norm` raise.

    Equivalent::

        z = residual + F.dropout(x, p, training) * row_scale[:, None] * layer_scale
        y = F.layer_norm(z, normalized_shape, weight, bias, eps).to(x.dtype)

    Sources: `layer_norm`'s and `dropout_add`'s; the names are those of
    https://github.com/Dao-AILab/flash-attention/blob/main/flash_attn/ops/triton/layer_norm.py
    """
    p = p if training else 0.0
    z_dtype = _check(input, residual, normalized_shape, row_scale, layer_scale, generator, residual_in_fp32)
    sum_of = input, residual, p, layer_scale, row_scale
    if dispatch.dropout_add_layer_norm(*sum_of, normalized_shape, weight, bias, eps):
        z = _z_in_torch(input, residual, p, row_scale, layer_scale, generator, z_dtype)
        y = _norm_in_torch(F.layer_norm, z, input.dtype, normalized_shape, weight, bias, eps)
        return (y, z) if prenorm else y
    normalized_shape = tuple(normalized_shape)
    out_dtype = autocast.layer_norm_dtype(input) if z_dtype == input.dtype else input.dtype
    if _is_the_input(*sum_of, z_dtype):
        y, z = _layer_norm(input, weight, bias, normalized_shape, eps, out_dtype), input
    else:
        y, z = _dropout_add_norm(
            input, residual, weight, bias, layer_scale, row_scale, of_elements(p, input.dtype), generator,
            normalized_shape, eps, z_dtype, out_dtype, True, prenorm,
        )  # fmt: skip
    return (y, z) if prenorm else y


@_one_call_when_traced
def dropout_add_rms_norm(
    input, residual, normalized_shape, weight=None, p=0.5, training=True, eps=None,
    *, prenorm=False, residual_in_fp32=False, row_scale=None, layer_scale=None, generator=None,
):  # fmt: skip
    r"""Dropout, the sum with a residual and RMSNorm in the launches of RMSNorm.

    z = residual + dropout(x) * row_scale * layer_scale and y = rms_norm(z). Arguments and result are those of
    `dropout_add_layer_norm`, with the weight and eps of `rms_norm`, whose machine epsilon is that of z.

    Equivalent::

        z = residual + F.dropout(x, p, training) * row_scale[:, None] * layer_scale
        y = F.rms_norm(z, normalized_shape, weight, eps).to(x.dtype)

    Sources: `rms_norm`'s and `dropout_add`'s
    """
    p = p if training else 0.0
    z_dtype = _check(input, residual, normalized_shape, row_scale, layer_scale, generator, residual_in_fp32)
    sum_of = input, residual, p, layer_scale, row_scale
    if dispatch.dropout_add_rms_norm(*sum_of, normalized_shape, weight, eps):
        z = _z_in_torch(input, residual, p, row_scale, layer_scale, generator, z_dtype)
        y = _norm_in_torch(F.rms_norm, z, input.dtype, normalized_shape, weight, eps)
        return (y, z) if prenorm else y
    normalized_shape = tuple(normalized_shape)
    eps = torch.finfo(compute_dtype(z_dtype)).eps if eps is None else eps
    out_dtype = autocast.rms_norm_dtype(input) if z_dtype == input.dtype else input.dtype
    if _is_the_input(*sum_of, z_dtype):
        y, z = _rms_norm(input, weight, normalized_shape, eps, out_dtype), input
    else:
        y, z = _dropout_add_norm(
            input, residual, weight, None, layer_scale, row_scale, of_elements(p, input.dtype), generator,
            normalized_shape, eps, z_dtype, out_dtype, False, prenorm,
        )  # fmt: skip
    return (y, z) if prenorm else y


def _check(x, residual, normalized_shape, row_scale, layer_scale, generator, residual_in_fp32):
    """z's dtype, of what torch would not refuse."""
    if residual is not None:
        _check_residual(x, residual)
    if layer_scale is not None or row_scale is not None:
        _check_scales(x, torch.Size(normalized_shape), layer_scale, row_scale)
    if generator is not None:
        check_generator(x, generator)
    return _z_dtype(x, residual, residual_in_fp32)


def _is_the_input(x, residual, p, layer_scale, row_scale, z_dtype):
    """Whether z is."""
    return residual is None and p == 0 and layer_scale is None and row_scale is None and z_dtype == x.dtype


@_one_call_when_traced
def bias_act_dropout(
    input, bias=None, act="gelu", p=0.5, training=True, *, negative_slope=0.01, generator=None
):
    r"""Bias, activation and dropout in one launch: what stands between the two linear layers of a block.

    y = dropout(act(x + bias)). The backward computes x + bias and its activation once more and draws the mask
    again: kept for it are x and bias.

    Args:
        input: (*, C), float16, bfloat16, float32 or float64, any strides.
        bias: (C,), of input's dtype, or float32 beside 16 bits; or None.
        act, negative_slope: those of `batch_norm_act`.
        p, training, generator: those of `dropout`. For p = 0 and without training nothing is dropped.

    Returns a contiguous tensor of input's shape and dtype. Where the kernel does not apply
    (`normreg.functional.dispatch`), this is the equivalent below. Raises ValueError for another act,
    another shape of bias and p outside [0, 1]; TypeError and RuntimeError for a generator that is none, or
    of another device.

    Equivalent::

        y = F.dropout(F.gelu(x + bias), p, training)    # and so on

    Source: Shoeybi et al., "Megatron-LM" (2019), arXiv 1909.08053, which fuses the same sums
    """
    check_activation(act)
    if bias is not None and bias.shape != input.shape[-1:]:
        raise ValueError(
            f"expected a bias of shape {tuple(input.shape[-1:])}, got {tuple(bias.shape)}: it has one value "
            "for each of the input's last dimension"
        )
    if generator is not None:
        check_generator(input, generator)
    p = p if training else 0.0
    if dispatch.bias_act_dropout(input, bias, p, negative_slope):
        z = input if bias is None else (input + bias).to(input.dtype)
        return _dropout_in_torch(activation_in_torch(z, act, negative_slope), p, generator)
    rule = of_elements(p, input.dtype)
    return _bias_act_dropout.bias_act_dropout(input, bias, act, negative_slope, rule, generator)
