"""Layers of single models of diffusers that modulate a norm by an embedding, as of its release 0.42."""

from typing import Any

import torch
from torch import Tensor

from normreg import functional
from normreg.models.hooks import is_listened_to
from normreg.models.modulated import modulated
from normreg.models.registry import as_before, register_layer

MODELS = "diffusers.models.transformers.transformer"
SANA = "diffusers.models.transformers.sana_transformer"


def _rounded(norm: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`modulated` of a norm whose result has x's dtype, whatever autocast says."""
    return modulated(norm, x, scale, shift).to(torch.promote_types(x.dtype, scale.dtype))


@register_layer(
    f"{MODELS}_cogview4.CogView4AdaLayerNormContinuous",
    f"{MODELS}_glm_image.GlmImageAdaLayerNormContinuous",
)
def cogview4_ada_layer_norm_continuous(module: Any, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
    """Layer or RMS normalisation, scaled and shifted by an embedding that is linear."""
    scale, shift = module.linear(conditioning_embedding.to(x.dtype)).chunk(2, dim=1)
    return modulated(module.norm, x, scale, shift)


@register_layer(f"{MODELS}_flux3.Flux3AdaLayerNorm")
def flux3_ada_layer_norm(module: Any, hidden_states: Tensor, temb: Tensor) -> Tensor:
    """Layer normalisation, scaled and shifted by an embedding of each token."""
    scale, shift = module.linear(module.act_fn(temb)).chunk(2, dim=-1)
    return modulated(module.norm, hidden_states, scale, shift)


@register_layer(f"{MODELS}_cogview4.CogView4AdaLayerNormZero", f"{MODELS}_glm_image.GlmImageAdaLayerNormZero")
def cogview4_ada_layer_norm_zero(
    module: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor
) -> tuple[Tensor, ...]:
    """Layer normalisation of image and text, scaled and shifted by an embedding that is linear, and more."""
    x, context = hidden_states, encoder_hidden_states
    if context.dtype != x.dtype:
        return as_before(module, x, context, temb)
    shift, c_shift, scale, c_scale, *rest = module.linear(temb).chunk(12, dim=1)
    y = _rounded(module.norm, x, scale, shift)
    return y, *rest[::2], _rounded(module.norm_context, context, c_scale, c_shift), *rest[1::2]


@register_layer(f"{MODELS}_chroma.ChromaAdaLayerNormZeroPruned")
def chroma_ada_layer_norm_zero(
    module: Any,
    x: Tensor,
    timestep: Tensor | None = None,
    class_labels: Tensor | None = None,
    hidden_dtype: torch.dtype | None = None,
    emb: Any = None,
) -> tuple[Tensor, ...]:
    """Layer normalisation, scaled and shifted by parts that it is given, and the four others."""
    if module.emb is not None:
        emb = module.emb(timestep, class_labels, hidden_dtype=hidden_dtype)
    shift, scale, *rest = emb.flatten(1, 2).chunk(6, dim=1)
    return modulated(module.norm, x, scale, shift), *rest


@register_layer(f"{MODELS}_chroma.ChromaAdaLayerNormZeroSinglePruned")
def chroma_ada_layer_norm_zero_single(module: Any, x: Tensor, emb: Any = None) -> tuple[Tensor, ...]:
    """Layer normalisation, scaled and shifted by parts that it is given, and a gate."""
    shift, scale, gate = emb.flatten(1, 2).chunk(3, dim=1)
    return modulated(module.norm, x, scale, shift), gate


@register_layer(f"{MODELS}_chroma.ChromaAdaLayerNormContinuousPruned")
def chroma_ada_layer_norm_continuous(module: Any, x: Tensor, emb: Tensor) -> Tensor:
    """Layer or RMS normalisation, scaled and shifted by what it is given."""
    shift, scale = emb.flatten(1, 2).to(x.dtype).chunk(2, dim=1)
    return modulated(module.norm, x, scale, shift)


def _cosmos_embedding(module: Any, embedded: Tensor, more: Tensor | None) -> Tensor:
    embedded = module.linear_2(module.linear_1(module.activation(embedded)))
    return embedded if more is None else embedded + more


@register_layer(f"{MODELS}_cosmos.CosmosAdaLayerNorm")
def cosmos_ada_layer_norm(
    module: Any, hidden_states: Tensor, embedded_timestep: Tensor, temb: Tensor | None = None
) -> Tensor:
    """Layer normalisation, scaled and shifted by the sum of two embeddings."""
    more = None if temb is None else temb[..., : 2 * module.embedding_dim]
    shift, scale = _cosmos_embedding(module, embedded_timestep, more).chunk(2, dim=-1)
    return modulated(module.norm, hidden_states, scale, shift)


@register_layer(f"{MODELS}_cosmos.CosmosAdaLayerNormZero")
def cosmos_ada_layer_norm_zero(
    module: Any, hidden_states: Tensor, embedded_timestep: Tensor, temb: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Layer normalisation, scaled and shifted by the sum of two embeddings, and a gate."""
    shift, scale, gate = _cosmos_embedding(module, embedded_timestep, temb).chunk(3, dim=-1)
    return modulated(module.norm, hidden_states, scale, shift), gate[:, None] if gate.dim() == 2 else gate


@register_layer(f"{MODELS}_easyanimate.EasyAnimateLayerNormZero")
def easyanimate_layer_norm_zero(
    module: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor
) -> tuple[Tensor, ...]:
    """Layer normalisation of video and text, scaled and shifted by an embedding, and a gate of each."""
    shift, scale, gate, c_shift, c_scale, c_gate = module.linear(module.silu(temb)).chunk(6, dim=1)
    y = modulated(module.norm, hidden_states, scale, shift)
    return y, modulated(module.norm, encoder_hidden_states, c_scale, c_shift), gate, c_gate


@register_layer(f"{MODELS}_mochi.MochiRMSNormZero")
def mochi_rms_norm_zero(module: Any, hidden_states: Tensor, emb: Tensor) -> tuple[Tensor, ...]:
    """RMS normalisation, scaled by an embedding and rounded once, and three more parts of that."""
    x, norm = hidden_states, module.norm
    if max(x.dtype.itemsize, emb.dtype.itemsize) > 4 or is_listened_to(norm):
        return as_before(module, x, emb)
    scale, *rest = module.linear(module.silu(emb)).chunk(4, dim=1)
    return functional.ada_rms_norm(x, scale, eps=norm.eps).to(x.dtype), *rest


@register_layer(f"{MODELS}_mochi.MochiLayerNormContinuous")
def mochi_layer_norm_continuous(module: Any, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
    """RMS normalisation, scaled by an embedding and rounded once."""
    norm = module.norm
    if x.dtype.itemsize > 4 or is_listened_to(norm, norm.norm):
        return as_before(module, x, conditioning_embedding)
    scale = module.linear_1(module.silu(conditioning_embedding).to(x.dtype))
    return functional.ada_rms_norm(x, scale, eps=norm.norm.eps).to(x.dtype)


@register_layer(f"{MODELS}_longcat_audio_dit.AudioDiTAdaLayerNormZeroFinal")
def longcat_ada_layer_norm_zero_final(module: Any, hidden_states: Tensor, embedding: Tensor) -> Tensor:
    """Layer normalisation, scaled and shifted by an embedding of each sample or token."""
    if hidden_states.dtype.itemsize > 4:
        return as_before(module, hidden_states, embedding)
    scale, shift = module.linear(module.silu(embedding)).chunk(2, dim=-1)
    return _rounded(module.norm, hidden_states, scale, shift)


@register_layer(f"{MODELS}_qwenimage21.QwenImage21AdaLayerNormContinuous")
def qwenimage_ada_layer_norm_continuous(
    module: Any,
    hidden_states: Tensor,
    conditioning_embedding: Tensor,
    target_token_mask: Tensor | None = None,
) -> Tensor:
    """Layer normalisation, scaled by an embedding where that is the same for all tokens of a sample."""
    x = hidden_states
    if target_token_mask is not None:
        return as_before(module, x, conditioning_embedding, target_token_mask)
    return modulated(module.norm, x, module.linear(module.silu(conditioning_embedding).to(x.dtype)))


def _in_two_parts(
    module: Any, x: Tensor, parts: tuple[Tensor, ...], first: tuple[Tensor, ...], n: int
) -> Tensor:
    """The first n tokens and the others, scaled and shifted each by its own embedding."""
    (shift, scale, *_), (first_shift, first_scale, *_) = parts, first
    y = modulated(module.norm, x[:, :n], first_scale, first_shift)
    return torch.cat([y, modulated(module.norm, x[:, n:], scale, shift)], dim=1)


@register_layer(f"{MODELS}_hunyuan_video.HunyuanVideoTokenReplaceAdaLayerNormZero")
def hunyuan_ada_layer_norm_zero(
    module: Any, hidden_states: Tensor, emb: Tensor, token_replace_emb: Tensor, first_frame_num_tokens: int
) -> tuple[Tensor, ...]:
    """Layer normalisation, the first frame modulated by another embedding, and eight parts of both."""
    parts, first = (module.linear(module.silu(e)).chunk(6, dim=1) for e in (emb, token_replace_emb))
    y = _in_two_parts(module, hidden_states, parts, first, first_frame_num_tokens)
    return y, *parts[2:], *first[2:]


@register_layer(f"{MODELS}_hunyuan_video.HunyuanVideoTokenReplaceAdaLayerNormZeroSingle")
def hunyuan_ada_layer_norm_zero_single(
    module: Any, hidden_states: Tensor, emb: Tensor, token_replace_emb: Tensor, first_frame_num_tokens: int
) -> tuple[Tensor, ...]:
    """Layer normalisation, the first frame modulated by another embedding, and a gate of each."""
    parts, first = (module.linear(module.silu(e)).chunk(3, dim=1) for e in (emb, token_replace_emb))
    y = _in_two_parts(module, hidden_states, parts, first, first_frame_num_tokens)
    return y, parts[2], first[2]


@register_layer(f"{SANA}.SanaModulatedNorm")
def sana_modulated_norm(
    module: Any, hidden_states: Tensor, temb: Tensor, scale_shift_table: Tensor
) -> Tensor:
    """Layer normalisation, scaled and shifted by a table and an embedding."""
    table = scale_shift_table
    shift, scale = (table[None] + temb[:, None].to(table.device)).chunk(2, dim=1)
    return modulated(module.norm, hidden_states, scale, shift)


@register_layer(f"{MODELS}_sana_video.SanaModulatedNorm")
def sana_video_modulated_norm(
    module: Any, hidden_states: Tensor, temb: Tensor, scale_shift_table: Tensor
) -> Tensor:
    """Layer normalisation, scaled and shifted by a table and an embedding of each token or for all."""
    table = scale_shift_table
    shift, scale = (table[None, None] + temb[:, :, None].to(table.device)).unbind(dim=2)
    return modulated(module.norm, hidden_states, scale, shift)


@register_layer(f"{MODELS}_minimax_h3.MiniMaxH3AdaLayerNormOut")
def minimax_ada_layer_norm(
    module: Any, hidden_states: Tensor, temb: Tensor, timestep_indices: Tensor
) -> Tensor:
    """RMS normalisation, scaled and shifted by the embedding of each row's timestep."""
    x = hidden_states
    embedded = module.linear(torch.nn.functional.silu(temb).to(module.linear.weight.dtype))
    shift, scale = (part.index_select(0, timestep_indices) for part in embedded.chunk(2, dim=-1))
    if x.dim() == 3:  # (1, rows, cols)
        shift, scale = shift[None], scale[None]
    return modulated(module.norm, x, scale, shift)
