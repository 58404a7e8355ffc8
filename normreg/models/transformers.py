"""Normalisation layers of transformers, as of its release 5.23."""

from typing import Any

import torch
from torch import Tensor

from normreg import functional
from normreg.models import transformers_classes as classes
from normreg.models.hooks import is_listened_to
from normreg.models.registry import as_before, register_layer, same_dtype
from normreg.models.torchvision import frozen_batch_norm
from normreg.ops.activations import activation_of


def _paths(names: str) -> list[str]:
    """Import paths of "model.Class" and "model.part.Class"."""
    split = (name.split(".") for name in names.split())
    return [
        f"transformers.models.{model}.modeling_{'_'.join((model, *part))}.{name}"
        for model, *part, name in split
    ]


def eps_of(module: Any) -> float:
    """What a layer adds to the mean square, whichever of two names it has for it."""
    eps: float = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return eps


def rms_norm_of(module: Any, x: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """RMS normalisation of a layer, with a result of the dtype, which autocast does not change."""
    return functional.rms_norm(x, x.shape[-1:], weight, eps_of(module), out_dtype=dtype)


@register_layer(*_paths(classes.LIKE_LLAMA))
def llama_rms_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """RMS normalisation, rounded once, where the original rounds before the weight as well."""
    x, weight = hidden_states, module.weight
    beside_float32 = x.dtype.itemsize == 2 and weight.dtype == torch.float32
    if not (beside_float32 or same_dtype(x, weight)):
        return as_before(module, x)
    return rms_norm_of(module, x, weight, weight.dtype)


@register_layer(*_paths(classes.LIKE_MOSHI))
def moshi_rms_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """RMS normalisation with the input's dtype, whatever the weight's is."""
    return rms_norm_of(module, hidden_states, module.weight, hidden_states.dtype)


@register_layer(*_paths(classes.LIKE_GEMMA_4))
def gemma_4_rms_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """RMS normalisation with the input's dtype, with a weight where the layer says so."""
    weight = module.weight if module.with_scale else None
    return rms_norm_of(module, hidden_states, weight, hidden_states.dtype)


@register_layer(*_paths(classes.LIKE_L2_NORM))
def l2_norm(module: Any, x: Tensor) -> Tensor:
    """RMS normalisation without a weight."""
    return rms_norm_of(module, x, None, x.dtype)


@register_layer(*_paths(classes.LIKE_GEMMA))
def gemma_rms_norm(module: Any, x: Tensor) -> Tensor:
    """RMS normalisation with the weight 1 + weight."""
    if x.dtype.itemsize > 4:
        return as_before(module, x)
    return rms_norm_of(module, x, 1.0 + module.weight.float(), x.dtype)


@register_layer(*_paths("qwen4_exp.Qwen4ExpTextRMSNorm"))
def qwen4_rms_norm(module: Any, x: Tensor) -> Tensor:
    """RMS normalisation with the weight 1 + weight, in groups where the layer says so."""
    if x.dtype.itemsize > 4:
        return as_before(module, x)
    weight = 1.0 + module.weight.float()
    return functional.rms_norm_gated(x, None, weight, eps=module.eps, group_size=module.group_size)


@register_layer(*_paths(classes.LIKE_MAMBA_2))
def mamba_2_gated_norm(module: Any, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
    """RMS normalisation in groups behind a silu gate, rounded once, where the original rounds twice."""
    x, weight = hidden_states, module.weight
    if x.dtype.itemsize > 4 or not same_dtype(x, weight, gate):
        return as_before(module, x, gate)
    options = dict(group_size=module.group_size, norm_before_gate=False)
    return functional.rms_norm_gated(x, gate, weight, eps=module.variance_epsilon, **options)


@register_layer(*_paths(classes.LIKE_QWEN_3_NEXT))
def qwen3_next_gated_norm(module: Any, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
    """RMS normalisation before a silu or sigmoid gate, rounded once."""
    x, act = hidden_states, "silu" if module.activation == "swish" else module.activation
    if act not in ("silu", "sigmoid") or gate is None or x.dtype.itemsize > 4:
        return as_before(module, x, gate)
    return functional.rms_norm_gated(x, gate, module.weight, eps=eps_of(module), act=act)


@register_layer(*_paths("falcon_h1.FalconH1RMSNormGated"))
def falcon_h1_gated_norm(module: Any, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
    """RMS normalisation in groups before or behind a silu gate."""
    x, size = hidden_states, hidden_states.shape[-1] // module.n_groups
    if x.dtype.itemsize > 4:
        return as_before(module, x, gate)
    options = dict(group_size=size, norm_before_gate=module.norm_before_gate)
    return functional.rms_norm_gated(x, gate, module.weight, eps=module.variance_epsilon, **options)


@register_layer(*_paths(classes.LIKE_CONVNEXT))
def convnext_layer_norm(module: Any, features: Tensor) -> Tensor:
    """Layer normalisation over the last dimension or, where the layer says so, over the channels."""
    if module.data_format == "channels_first":
        return functional.layer_norm_channels(features, module.weight, module.bias, module.eps)
    return functional.layer_norm(features, module.normalized_shape, module.weight, module.bias, module.eps)


@register_layer(*_paths(classes.LIKE_EOMT))
def eomt_layer_norm(module: Any, hidden_state: Tensor) -> Tensor:
    """Layer normalisation over the channels."""
    return functional.layer_norm_channels(hidden_state, module.weight, module.bias, module.eps)


@register_layer(*_paths(classes.LIKE_COHERE))
def cohere_layer_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """Layer normalisation without a bias, with the input's dtype, where heads have one weight."""
    x, weight = hidden_states, module.weight
    if weight.dim() != 1 or x.dtype.itemsize > 4:
        return as_before(module, x)
    return functional.layer_norm(x, weight.shape, weight, None, module.variance_epsilon, out_dtype=x.dtype)


@register_layer(*_paths(classes.LIKE_OLMO))
def olmo_layer_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """Layer normalisation with the input's dtype."""
    x, shape = hidden_states, tuple(module.normalized_shape)
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    return functional.layer_norm(x, shape, weight, bias, getattr(module, "eps", 1e-5), out_dtype=x.dtype)


@register_layer(*_paths("deberta.DebertaLayerNorm"))
def deberta_layer_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """Layer normalisation, rounded once, where the original rounds before the weight as well."""
    x, weight, bias = hidden_states, module.weight, module.bias
    if not same_dtype(x, weight, bias):
        return as_before(module, x)
    return functional.layer_norm(x, weight.shape, weight, bias, module.variance_epsilon, out_dtype=x.dtype)


@register_layer(*_paths("nemotron.NemotronLayerNorm1P"))
def nemotron_layer_norm(module: Any, input: Tensor) -> Tensor:
    """Layer normalisation with the weight 1 + weight, unless autocast is on."""
    if torch.is_autocast_enabled(input.device.type):
        return as_before(module, input)
    weight = module.weight + 1.0
    return functional.layer_norm(input, module.normalized_shape, weight, module.bias, module.eps)


@register_layer(*_paths("chameleon.ChameleonLayerNorm"))
def chameleon_layer_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """Layer normalisation, then weights and biases that heads have for themselves."""
    shape = tuple(module.normalized_shape)
    return functional.layer_norm(hidden_states, shape, eps=1e-5) * module.weight + module.bias


@register_layer(*_paths(classes.GROUP_NORMS))
def group_norm(module: Any, input: Tensor, quant_states: Tensor | None = None) -> Tensor:
    """Group normalisation."""
    return functional.group_norm(input, module.num_groups, module.weight, module.bias, module.eps)


@register_layer(*_paths("bit.BitGroupNormActivation"))
def group_norm_activation(module: Any, hidden_state: Tensor) -> Tensor:
    """Group normalisation and the activation behind it in one call, where that is one of torch.nn's."""
    own = module.num_groups, module.weight, module.bias, module.eps
    act = None if is_listened_to(module.activation) else activation_of(module.activation)
    if act is None:
        return module.activation(functional.group_norm(hidden_state, *own))
    name, negative_slope = act
    return functional.group_norm_act(hidden_state, *own, act=name, negative_slope=negative_slope)


@register_layer(*_paths(classes.DROP_PATHS))
def drop_path(module: Any, hidden_states: Tensor) -> Tensor:
    """Drop path."""
    return functional.drop_path(hidden_states, module.drop_prob, module.training)


register_layer(*_paths(classes.FROZEN_BATCH_NORMS))(frozen_batch_norm)
