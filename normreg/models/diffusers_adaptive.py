"""Layers of diffusers that modulate a norm by an embedding, as of its release 0.42.

What they compute beside that, the projections, stays theirs: `normed(x) * (1 + scale) + shift` is one call.
"""

from typing import Any

import torch
from torch import Tensor

from normreg.models.modulated import modulated
from normreg.models.registry import register_layer

FAMILY = "diffusers.models.normalization"


@register_layer(f"{FAMILY}.AdaLayerNorm")
def ada_layer_norm(
    module: Any, x: Tensor, timestep: Tensor | None = None, temb: Tensor | None = None
) -> Tensor:
    """Layer normalisation, scaled and shifted by an embedding."""
    if module.emb is not None:
        temb = module.emb(timestep)
    projected = module.linear(module.silu(temb))
    if module.chunk_dim == 1:
        shift, scale = projected.chunk(2, dim=1)
    else:
        scale, shift = projected.chunk(2, dim=0)
    return modulated(module.norm, x, scale, shift)


@register_layer(f"{FAMILY}.AdaLayerNormZero")
def ada_layer_norm_zero(
    module: Any,
    x: Tensor,
    timestep: Tensor | None = None,
    class_labels: Tensor | None = None,
    hidden_dtype: torch.dtype | None = None,
    emb: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Layer normalisation, scaled and shifted by an embedding, and four more parts of that."""
    if module.emb is not None:
        emb = module.emb(timestep, class_labels, hidden_dtype=hidden_dtype)
    shift, scale, *rest = module.linear(module.silu(emb)).chunk(6, dim=1)
    return modulated(module.norm, x, scale, shift), *rest


@register_layer(f"{FAMILY}.AdaLayerNormZeroSingle")
def ada_layer_norm_zero_single(module: Any, x: Tensor, emb: Tensor | None = None) -> tuple[Tensor, ...]:
    """Layer normalisation, scaled and shifted by an embedding, and a gate."""
    shift, scale, gate = module.linear(module.silu(emb)).chunk(3, dim=1)
    return modulated(module.norm, x, scale, shift), gate


@register_layer(f"{FAMILY}.SD35AdaLayerNormZeroX")
def sd35_ada_layer_norm_zero(
    module: Any, hidden_states: Tensor, emb: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Layer normalisation, scaled and shifted by an embedding in two ways, and more parts of that."""
    shift, scale, *rest, shift_2, scale_2, gate_2 = module.linear(module.silu(emb)).chunk(9, dim=1)
    y = modulated(module.norm, hidden_states, scale, shift)
    return y, *rest, modulated(module.norm, hidden_states, scale_2, shift_2), gate_2


@register_layer(f"{FAMILY}.LuminaRMSNormZero")
def lumina_rms_norm_zero(module: Any, x: Tensor, emb: Tensor | None = None) -> tuple[Tensor, ...]:
    """RMS normalisation, scaled by an embedding, and three more parts of that."""
    scale, *rest = module.linear(module.silu(emb)).chunk(4, dim=1)
    return modulated(module.norm, x, scale), *rest


@register_layer(f"{FAMILY}.AdaLayerNormContinuous")
def ada_layer_norm_continuous(module: Any, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
    """Layer or RMS normalisation, scaled and shifted by an embedding."""
    scale, shift = module.linear(module.silu(conditioning_embedding).to(x.dtype)).chunk(2, dim=1)
    return modulated(module.norm, x, scale, shift)


@register_layer(f"{FAMILY}.LuminaLayerNormContinuous")
def lumina_layer_norm_continuous(module: Any, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
    """Layer or RMS normalisation, scaled by an embedding, then a projection where the layer has one."""
    scale = module.linear_1(module.silu(conditioning_embedding).to(x.dtype))
    y = modulated(module.norm, x, scale)
    return y if module.linear_2 is None else module.linear_2(y)


@register_layer(f"{FAMILY}.CogView3PlusAdaLayerNormZeroTextImage")
def cogview3_ada_layer_norm_zero(
    module: Any, x: Tensor, context: Tensor, emb: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Layer normalisation of image and text, scaled and shifted by an embedding, and more parts of that."""
    parts = module.linear(module.silu(emb)).chunk(12, dim=1)
    (shift, scale, *rest), (c_shift, c_scale, *c_rest) = parts[:6], parts[6:]
    y = modulated(module.norm_x, x, scale, shift)
    return y, *rest, modulated(module.norm_c, context, c_scale, c_shift), *c_rest


@register_layer(f"{FAMILY}.CogVideoXLayerNormZero")
def cogvideox_layer_norm_zero(
    module: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor
) -> tuple[Tensor, ...]:
    """Layer normalisation of video and text, scaled and shifted by an embedding, and a gate of each."""
    shift, scale, gate, c_shift, c_scale, c_gate = module.linear(module.silu(temb)).chunk(6, dim=1)
    y = modulated(module.norm, hidden_states, scale, shift)
    context = modulated(module.norm, encoder_hidden_states, c_scale, c_shift)
    return y, context, gate[:, None], c_gate[:, None]
