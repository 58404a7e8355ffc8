"""Layers of transformers that modulate a norm by an embedding, as of its release 5.23."""

from typing import Any

from torch import Tensor

from normreg.models.modulated import modulated
from normreg.models.registry import register_layer

OMNI = "transformers.models.qwen2_5_omni.modeling_qwen2_5_omni.Qwen2_5_OmniAdaLayerNormZero"


@register_layer(OMNI)
def omni_ada_layer_norm_zero(module: Any, hidden_states: Tensor, emb: Any = None) -> tuple[Tensor, ...]:
    """Layer normalisation, scaled and shifted by an embedding, and four more parts of that."""
    shift, scale, *rest = module.linear(module.silu(emb)).chunk(6, dim=1)
    return modulated(module.norm, hidden_states, scale, shift), *rest


@register_layer(f"{OMNI}_Final")
def omni_ada_layer_norm_zero_final(module: Any, hidden_states: Tensor, emb: Tensor) -> Tensor:
    """Layer normalisation, scaled and shifted by an embedding."""
    scale, shift = module.linear(module.silu(emb)).chunk(2, dim=1)
    return modulated(module.norm, hidden_states, scale, shift)
