"""Normalisation and dropout layers of timm."""

from typing import Any

import torch
from torch import Tensor

from normreg import functional
from normreg.models.hooks import is_listened_to
from normreg.models.registry import as_before, register_layer, same_dtype
from normreg.nn.batch_norm import call_batch_norm
from normreg.ops.activations import activation_of


def _is_fast(module: Any) -> bool:
    """Whether timm is told to compute the layer in another way under autocast."""
    return getattr(module, "_fast_norm", False)


@register_layer("timm.layers.norm.LayerNorm", "timm.layers.norm.LayerNormFp32")
def layer_norm(module: Any, x: Tensor) -> Tensor:
    """Layer normalisation, unless timm's fast norms are on."""
    if _is_fast(module):
        return as_before(module, x)
    return functional.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)


@register_layer("timm.layers.norm.LayerNorm2d", "timm.layers.norm.LayerNorm2dFp32")
def layer_norm_2d(module: Any, x: Tensor) -> Tensor:
    """Layer normalisation over the channels, unless timm's fast norms are on."""
    if _is_fast(module):
        return as_before(module, x)
    return functional.layer_norm_channels(x, module.weight, module.bias, module.eps)


@register_layer("timm.layers.norm.GroupNorm", "timm.layers.norm.GroupNorm1")
def group_norm(module: Any, x: Tensor) -> Tensor:
    """Group normalisation, unless timm's fast norms are on."""
    if _is_fast(module):
        return as_before(module, x)
    return functional.group_norm(x, module.num_groups, module.weight, module.bias, module.eps)


@register_layer("timm.layers.norm.RmsNorm")
def rms_norm(module: Any, x: Tensor) -> Tensor:
    """RMS normalisation, unless timm's fast norms are on."""
    if _is_fast(module) or not same_dtype(x, module.weight):
        return as_before(module, x)
    return functional.rms_norm(x, module.normalized_shape, module.weight, module.eps)


@register_layer("timm.layers.norm.RmsNorm2d")
def rms_norm_2d(module: Any, x: Tensor) -> Tensor:
    """RMS normalisation over the channels, unless timm's fast norms are on."""
    if _is_fast(module) or not same_dtype(x, module.weight):
        return as_before(module, x)
    return functional.rms_norm_channels(x, module.weight, module.eps)


@register_layer("timm.layers.norm.RmsNorm2dFp32")
def rms_norm_2d_fp32(module: Any, x: Tensor) -> Tensor:
    """RMS normalisation over the channels, with the input's dtype, whatever the weight's is."""
    if x.dtype.itemsize > 4:
        return as_before(module, x)
    return functional.rms_norm_channels(x, module.weight, module.eps, out_dtype=x.dtype)


def _activation(module: Any) -> tuple[str, float] | None:
    """The name and slope of the activation that a norm's call may compute, or None."""
    bypassed = type(module.drop) is torch.nn.Identity and not is_listened_to(module.drop, module.act)
    return activation_of(module.act) if bypassed else None


@register_layer("timm.layers.norm_act.BatchNormAct2d")
def batch_norm_act_2d(module: Any, x: Tensor) -> Tensor:
    """Batch normalisation and the activation behind it in one call, where that is one of torch.nn's."""
    act = _activation(module)
    if act is None:
        return module.act(module.drop(call_batch_norm(module, functional.batch_norm, x)))
    name, negative_slope = act
    return call_batch_norm(module, functional.batch_norm_act, x, act=name, negative_slope=negative_slope)


@register_layer("timm.layers.norm_act.GroupNormAct", "timm.layers.norm_act.GroupNorm1Act")
def group_norm_act(module: Any, x: Tensor) -> Tensor:
    """Group normalisation and the activation behind it in one call, where that is one of torch.nn's."""
    if _is_fast(module):
        return as_before(module, x)
    act, own = _activation(module), (module.num_groups, module.weight, module.bias, module.eps)
    if act is None:
        return module.act(module.drop(functional.group_norm(x, *own)))
    name, negative_slope = act
    return functional.group_norm_act(x, *own, act=name, negative_slope=negative_slope)


@register_layer("timm.layers.drop.DropPath")
def drop_path(module: Any, x: Tensor) -> Tensor:
    """Drop path."""
    return functional.drop_path(x, module.drop_prob, module.training, module.scale_by_keep)
