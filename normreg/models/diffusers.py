"""Normalisation layers of diffusers, as of its release 0.42."""

from typing import Any

from torch import Tensor

from normreg import functional
from normreg.models.registry import as_before, register_layer, same_dtype
from normreg.models.transformers import rms_norm_of

LIKE_MOCHI = """
    models.normalization.MochiRMSNorm models.transformers.transformer_cosmos3.Cosmos3NemotronRMSNorm
    pipelines.kolors.text_encoder.RMSNorm
"""
LIKE_KREA = """
    models.transformers.transformer_krea2.Krea2RMSNorm
    models.transformers.transformer_qwenimage21.QwenImage21ZeroCenterRMSNorm
"""
OVER_CHANNELS = """
    models.unets.unet_stable_cascade.SDCascadeLayerNorm
    pipelines.deprecated.wuerstchen.modeling_wuerstchen_common.WuerstchenLayerNorm
"""


def _paths(names: str) -> list[str]:
    return [f"diffusers.{name}" for name in names.split()]


@register_layer("diffusers.models.normalization.RMSNorm")
def rms_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """RMS normalisation, rounded once, where the original rounds before the weight as well."""
    x, weight, bias = hidden_states, module.weight, module.bias
    dtype = x.dtype if weight is None else weight.dtype
    if x.dtype.itemsize > 4 or dtype.itemsize > 4:
        return as_before(module, x)
    y = rms_norm_of(module, x, weight, dtype)
    return y if weight is None or bias is None else y + bias


@register_layer("diffusers.models.transformers.t5_film_transformer.T5LayerNorm")
def t5_layer_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """RMS normalisation, rounded once, where the original rounds before the weight as well."""
    x, weight = hidden_states, module.weight
    if x.dtype.itemsize > 4 or weight.dtype.itemsize > 4:
        return as_before(module, x)
    return rms_norm_of(module, x, weight, weight.dtype)


@register_layer(*_paths(LIKE_MOCHI))
def mochi_rms_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """RMS normalisation with the input's dtype, whatever the weight's is."""
    return rms_norm_of(module, hidden_states, module.weight, hidden_states.dtype)


@register_layer(*_paths(LIKE_KREA))
def krea_rms_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """RMS normalisation with the weight 1 + weight and the input's dtype."""
    return rms_norm_of(module, hidden_states, 1.0 + module.weight.float(), hidden_states.dtype)


@register_layer("diffusers.models.transformers.transformer_stable_audio3.StableAudio3RMSNorm")
def stable_audio_rms_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """RMS normalisation with the input's dtype, computed in float32 where the layer says so."""
    x, weight = hidden_states, module.gamma
    if x.dtype.itemsize > 4 or not (module.force_fp32 or same_dtype(x, weight)):
        return as_before(module, x)
    return rms_norm_of(module, x, weight, x.dtype)


@register_layer("diffusers.models.normalization.FP32LayerNorm")
def fp32_layer_norm(module: Any, inputs: Tensor) -> Tensor:
    """Layer normalisation with the input's dtype, whatever those of weight and bias are."""
    parameters = module.weight, module.bias
    return functional.layer_norm(
        inputs, module.normalized_shape, *parameters, module.eps, out_dtype=inputs.dtype
    )


@register_layer(*_paths(OVER_CHANNELS))
def layer_norm_channels(module: Any, x: Tensor) -> Tensor:
    """Layer normalisation over the channels."""
    return functional.layer_norm_channels(x, module.weight, module.bias, module.eps)
