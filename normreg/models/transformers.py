"""Normalisation layers of transformers, as of its release 5.23."""

from typing import Any

import torch
from torch import Tensor

from normreg import functional
from normreg.models.registry import as_before, register_layer, same_dtype
from normreg.models.torchvision import frozen_batch_norm

# "model.Class" or "model.part.Class": classes with the same forward under many names
LIKE_LLAMA = """
    aimv2.Aimv2RMSNorm apertus.ApertusRMSNorm arcee.ArceeRMSNorm aria.AriaTextRMSNorm axk1.AXK1RMSNorm
    axk2.AXK2RMSNorm bailing_hybrid.BailingHybridRMSNorm bamba.BambaRMSNorm bitnet.BitNetRMSNorm
    blt.BltRMSNorm chameleon.ChameleonRMSNorm clvp.ClvpRMSNorm cohere2_moe.Cohere2MoeRMSNorm
    cosmos3_edge.Cosmos3EdgeTextRMSNorm csm.CsmRMSNorm cwm.CwmRMSNorm
    deepseek_ocr2.DeepseekOcr2TextRMSNorm deepseek_ocr2.DeepseekOcr2VisionRMSNorm
    deepseek_v2.DeepseekV2RMSNorm deepseek_v3.DeepseekV3RMSNorm deepseek_v32.DeepseekV32RMSNorm
    deimv2.Deimv2RMSNorm dia.DiaRMSNorm diffllama.DiffLlamaRMSNorm doge.DogeRMSNorm dots1.Dots1RMSNorm
    dots3_note.Dots3NoteRMSNorm emu3.Emu3RMSNorm ernie4_5.Ernie4_5RMSNorm
    ernie4_5_moe.Ernie4_5_MoeRMSNorm ernie4_5_vl_moe.Ernie4_5_VLMoeRMSNorm eurobert.EuroBertRMSNorm
    evolla.EvollaRMSNorm exaone4.Exaone4RMSNorm exaone4_5.Exaone4_5_RMSNorm exaone_moe.ExaoneMoeRMSNorm
    falcon_h1.FalconH1RMSNorm falcon_mamba.FalconMambaRMSNorm glm.GlmRMSNorm glm4.Glm4RMSNorm
    glm4_moe.Glm4MoeRMSNorm glm4_moe_lite.Glm4MoeLiteRMSNorm glm4v.Glm4vRMSNorm
    glm4v_moe.Glm4vMoeRMSNorm glm4v_moe.Glm4vMoeTextRMSNorm glm5_next.Glm5NextRMSNorm
    glm5_next.Glm5NextTextRMSNorm glm_image.GlmImageRMSNorm glm_moe_dsa.GlmMoeDsaRMSNorm
    glm_ocr.GlmOcrRMSNorm granite.GraniteRMSNorm granite4_vision.Granite4VisionTextRMSNorm
    granite_docling.GraniteDoclingTextRMSNorm granite_swa.GraniteSWARMSNorm granitemoe.GraniteMoeRMSNorm
    granitemoe_swa.GraniteMoeSWARMSNorm granitemoehybrid.GraniteMoeHybridRMSNorm
    granitemoeshared.GraniteMoeSharedRMSNorm higgs_audio_v2.HiggsAudioV2RMSNorm
    hunyuan_v1_dense.HunYuanDenseV1RMSNorm hunyuan_v1_moe.HunYuanMoEV1RMSNorm
    hunyuan_vl.HunYuanVLRMSNorm hy_v3.HYV3RMSNorm hy_v4.HYV4RMSNorm hyperclovax.HyperCLOVAXRMSNorm
    idefics.IdeficsRMSNorm idefics2.Idefics2RMSNorm idefics3.Idefics3RMSNorm imagegpt.ImageGPTLayerNorm
    inkling.InklingRMSNorm internvl.InternVLVisionRMSNorm jamba.JambaRMSNorm jetmoe.JetMoeRMSNorm
    kimi_linear.KimiLinearRMSNorm kolibri1.Kolibri1RMSNorm kosmos2_5.Kosmos2_5LayerNorm
    laguna.LagunaRMSNorm lfm2.Lfm2RMSNorm lfm2_moe.Lfm2MoeRMSNorm lfm3.Lfm3RMSNorm
    lfm3_vl.Lfm3VlVisionRMSNorm lighton_ocr.LightOnOcrRMSNorm llama.LlamaRMSNorm
    llama4.Llama4TextRMSNorm longcat_flash.LongcatFlashRMSNorm longt5.LongT5LayerNorm mamba.MambaRMSNorm
    mamba2.Mamba2RMSNorm mellum.MellumRMSNorm mimo_v2_flash.MiMoV2FlashRMSNorm minicpm3.MiniCPM3RMSNorm
    minimax.MiniMaxRMSNorm minimax_m2.MiniMaxM2RMSNorm ministral.MinistralRMSNorm
    ministral3.Ministral3RMSNorm mistral.MistralRMSNorm mistral3.Mistral3RMSNorm
    mistral4.Mistral4RMSNorm mistral_large4.MistralLarge4RMSNorm mixtral.MixtralRMSNorm
    mllama.MllamaTextRMSNorm molmo2.Molmo2RMSNorm mt5.MT5LayerNorm
    muse_glimmer_assistant.MuseGlimmerAssistantRMSNorm neucodec.NeuCodecRMSNorm olmoe.OlmoeRMSNorm
    ovis2.Ovis2RMSNorm paddleocr_vl.PaddleOCRRMSNorm pe_audio.PeAudioEncoderRMSNorm
    pe_audio_video.PeAudioVideoEncoderRMSNorm pe_video.PeVideoEncoderRMSNorm phi3.Phi3RMSNorm
    phi4_multimodal.Phi4MultimodalRMSNorm pix2struct.Pix2StructLayerNorm pixtral.PixtralRMSNorm
    pop2piano.Pop2PianoLayerNorm qianfan_ocr.QianfanOCRVisionRMSNorm qwen2.Qwen2RMSNorm
    qwen2_5_omni.Qwen2_5OmniRMSNorm qwen2_5_vl.Qwen2_5_VLRMSNorm qwen2_moe.Qwen2MoeRMSNorm
    qwen2_vl.Qwen2VLRMSNorm qwen3.Qwen3RMSNorm qwen3_moe.Qwen3MoeRMSNorm
    qwen3_omni_moe.Qwen3OmniMoeCode2WavRMSNorm qwen3_omni_moe.Qwen3OmniMoeRMSNorm
    qwen3_omni_moe.Qwen3OmniMoeTextRMSNorm qwen3_omni_moe.Qwen3OmniMoeThinkerTextRMSNorm
    qwen3_vl.Qwen3VLTextRMSNorm qwen3_vl_moe.Qwen3VLMoeTextRMSNorm sapiens2.Sapiens2RMSNorm
    seed_oss.SeedOssRMSNorm smollm3.SmolLM3RMSNorm solar_open.SolarOpenRMSNorm
    switch_transformers.SwitchTransformersLayerNorm t5.T5LayerNorm timesfm.TimesFmRMSNorm
    timesfm2_5.TimesFm2_5RMSNorm udop.UdopLayerNorm ultrabert.UltrabertRMSNorm
    ultravbert.UltraVBertRMSNorm umt5.UMT5LayerNorm unlimited_ocr.UnlimitedOcrTextRMSNorm
    vibevoice.VibeVoiceRMSNorm vibevoice_acoustic_tokenizer.VibeVoiceAcousticTokenizerRMSNorm
    vibevoice_asr.VibeVoiceAsrRMSNorm voxtral_realtime.VoxtralRealtimeRMSNorm xcodec2.Xcodec2RMSNorm
    youtu.YoutuRMSNorm zamba.ZambaRMSNorm zamba2.Zamba2RMSNorm zaya.ZayaRMSNorm
"""
LIKE_MOSHI = """
    afmoe.AfmoeRMSNorm beam.BeamRMSNorm deepseek_v4.DeepseekV4RMSNorm flex_olmo.FlexOlmoRMSNorm
    flint.FlintRMSNorm gpt_oss.GptOssRMSNorm helium.HeliumRMSNorm inkling2.Inkling2RMSNorm
    kyutai_speech_to_text.KyutaiSpeechToTextRMSNorm moshi.MoshiRMSNorm nemotron_h.NemotronHRMSNorm
    nemotron_h_omni.NemotronH_Omni_RMSNorm olmo2.Olmo2RMSNorm olmo3.Olmo3RMSNorm
    olmo_hybrid.OlmoHybridRMSNorm openai_privacy_filter.OpenAIPrivacyFilterRMSNorm
"""
LIKE_GEMMA_4 = """
    diffusion_gemma.DiffusionGemmaRMSNorm embedding_gemma2.EmbeddingGemma2RMSNorm gemma3n.Gemma3nRMSNorm
    gemma4.Gemma4RMSNorm gemma4_unified.Gemma4UnifiedRMSNorm muse_glimmer.MuseGlimmerRMSNorm
    muse_spark.MuseSparkRMSNorm neomme.NeoMMERMSNorm
"""
LIKE_L2_NORM = """
    deepseek_v4.DeepseekV4UnweightedRMSNorm esmfold2.EsmFold2RMSNorm
    falcon_mamba.FalconMambaWeightlessRMSNorm glm5_next.Glm5NextTextUnweightedRMSNorm hrm_text.HrmTextRMSNorm
    inkling2.Inkling2UnweightedRMSNorm llama4.Llama4TextL2Norm nanochat.NanoChatRMSNorm
"""
LIKE_GEMMA = """
    gemma.GemmaRMSNorm gemma2.Gemma2RMSNorm gemma3.Gemma3RMSNorm minimax_m3_vl.MiniMaxM3VLRMSNorm
    muse_glimmer.MuseGlimmerTextCenteredRMSNorm muse_spark.MuseSparkTextCenteredRMSNorm
    qwen3_5.Qwen3_5RMSNorm qwen3_5_moe.Qwen3_5MoeRMSNorm qwen3_next.Qwen3NextRMSNorm
    recurrent_gemma.RecurrentGemmaRMSNorm step3p7.Step3p7RMSNorm t5gemma.T5GemmaRMSNorm
    t5gemma2.T5Gemma2RMSNorm vaultgemma.VaultGemmaRMSNorm
"""
LIKE_CONVNEXT = """
    convnext.ConvNextLayerNorm convnextv2.ConvNextV2LayerNorm deepseek_ocr2.DeepseekOcr2SamLayerNorm
    deepseek_vl_hybrid.DeepseekVLHybridLayerNorm dinov3_convnext.DINOv3ConvNextLayerNorm
    edgetam.EdgeTamLayerNorm edgetam_video.EdgeTamVideoLayerNorm got_ocr2.GotOcr2LayerNorm
    lw_detr.LwDetrLayerNorm pp_formulanet.PPFormulaNetLayerNorm rf_detr.RfDetrLayerNorm sam.SamLayerNorm
    sam2.Sam2LayerNorm sam2_video.Sam2VideoLayerNorm sam3_tracker.Sam3TrackerLayerNorm
    sam3_tracker_video.Sam3TrackerVideoLayerNorm sam_hq.SamHQLayerNorm seggpt.SegGptLayerNorm
    slanext.SLANeXtLayerNorm unlimited_ocr.UnlimitedOcrSamLayerNorm
"""
LIKE_EOMT = "eomt.EomtLayerNorm2d eomt_dinov3.EomtDinov3LayerNorm2d videomt.VideomtLayerNorm2d"
LIKE_COHERE = """
    cohere.CohereLayerNorm cohere2.Cohere2LayerNorm cohere2_moe.Cohere2MoeLayerNorm
    cohere_compass.CohereCompassLayerNorm
"""
LIKE_OLMO = "esmc.EsmcLayerNorm esmfold2.EsmFold2LayerNorm olmo.OlmoLayerNorm"
GROUP_NORMS = "emu3.Emu3VQVAEGroupNorm poolformer.PoolFormerGroupNorm"
DROP_PATHS = """
    beit.BeitDropPath bit.BitDropPath clap.ClapDropPath convnext.ConvNextDropPath
    convnextv2.ConvNextV2DropPath cvt.CvtDropPath data2vec.vision.Data2VecVisionDropPath dinat.DinatDropPath
    dinov2.Dinov2DropPath dinov2_with_registers.Dinov2WithRegistersDropPath
    dinov3_convnext.Dinov3ConvnextDropPath dinov3_vit.Dinov3ViTDropPath donut.swin.DonutDropPath
    eomt.EomtDropPath eomt_dinov3.EomtDinov3DropPath florence2.Florence2DropPath focalnet.FocalNetDropPath
    glpn.GlpnDropPath grounding_dino.GroundingDinoDropPath hiera.HieraDropPath
    maskformer.swin.MaskFormerDropPath mgp_str.MgpStrDropPath mm_grounding_dino.MMGroundingDinoDropPath
    pixio.PixioDropPath poolformer.PoolFormerDropPath pvt.PvtDropPath pvt_v2.PvtV2DropPath
    qianfan_ocr.QianfanOCRDropPath radio.RadioDropPath rf_detr.RfDetrDinov2DropPath
    sapiens2.Sapiens2DropPath segformer.SegformerDropPath seggpt.SegGptDropPath
    swiftformer.SwiftFormerDropPath swin.SwinDropPath swin2sr.Swin2SRDropPath swinv2.Swinv2DropPath
    timesformer.TimesformerDropPath tipsv2.Tipsv2VisionDropPath videomt.VideomtDropPath
    vitdet.VitDetDropPath vjepa2.VJEPA2DropPath x_clip.XCLIPDropPath
"""
FROZEN_BATCH_NORMS = """
    conditional_detr.ConditionalDetrFrozenBatchNorm2d d_fine.DFineFrozenBatchNorm2d
    dab_detr.DabDetrFrozenBatchNorm2d deformable_detr.DeformableDetrFrozenBatchNorm2d
    deimv2.Deimv2FrozenBatchNorm2d detr.DetrFrozenBatchNorm2d
    grounding_dino.GroundingDinoFrozenBatchNorm2d mm_grounding_dino.MMGroundingDinoFrozenBatchNorm2d
    pp_doclayout_v2.PPDocLayoutV2FrozenBatchNorm2d pp_doclayout_v3.PPDocLayoutV3FrozenBatchNorm2d
    pp_doclayout_v4.PPDocLayoutV4FrozenBatchNorm2d rt_detr.RTDetrFrozenBatchNorm2d
    rt_detr_v2.RTDetrV2FrozenBatchNorm2d table_transformer.TableTransformerFrozenBatchNorm2d
"""


def _paths(names: str) -> list[str]:
    """Import paths of "model.Class" and "model.part.Class"."""
    split = (name.split(".") for name in names.split())
    return [
        f"transformers.models.{model}.modeling_{'_'.join((model, *part))}.{name}"
        for model, *part, name in split
    ]


def _rms_norm(module: Any, x: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """RMS normalisation with a result of the dtype, which autocast does not change in these layers."""
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return functional.rms_norm(x, x.shape[-1:], weight, eps, out_dtype=dtype)


@register_layer(*_paths(LIKE_LLAMA))
def llama_rms_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """RMS normalisation, rounded once, where the original rounds before the weight as well."""
    x, weight = hidden_states, module.weight
    beside_float32 = x.dtype.itemsize == 2 and weight.dtype == torch.float32
    if not (beside_float32 or same_dtype(x, weight)):
        return as_before(module, x)
    return _rms_norm(module, x, weight, weight.dtype)


@register_layer(*_paths(LIKE_MOSHI))
def moshi_rms_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """RMS normalisation with the input's dtype, whatever the weight's is."""
    return _rms_norm(module, hidden_states, module.weight, hidden_states.dtype)


@register_layer(*_paths(LIKE_GEMMA_4))
def gemma_4_rms_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """RMS normalisation with the input's dtype, with a weight where the layer says so."""
    weight = module.weight if module.with_scale else None
    return _rms_norm(module, hidden_states, weight, hidden_states.dtype)


@register_layer(*_paths(LIKE_L2_NORM))
def l2_norm(module: Any, x: Tensor) -> Tensor:
    """RMS normalisation without a weight."""
    return _rms_norm(module, x, None, x.dtype)


@register_layer(*_paths(LIKE_GEMMA))
def gemma_rms_norm(module: Any, x: Tensor) -> Tensor:
    """RMS normalisation with the weight 1 + weight."""
    if x.dtype.itemsize > 4:
        return as_before(module, x)
    return _rms_norm(module, x, 1.0 + module.weight.float(), x.dtype)


@register_layer(*_paths(LIKE_CONVNEXT))
def convnext_layer_norm(module: Any, features: Tensor) -> Tensor:
    """Layer normalisation over the last dimension or, where the layer says so, over the channels."""
    if module.data_format == "channels_first":
        return functional.layer_norm_channels(features, module.weight, module.bias, module.eps)
    return functional.layer_norm(features, module.normalized_shape, module.weight, module.bias, module.eps)


@register_layer(*_paths(LIKE_EOMT))
def eomt_layer_norm(module: Any, hidden_state: Tensor) -> Tensor:
    """Layer normalisation over the channels."""
    return functional.layer_norm_channels(hidden_state, module.weight, module.bias, module.eps)


@register_layer(*_paths(LIKE_COHERE))
def cohere_layer_norm(module: Any, hidden_states: Tensor) -> Tensor:
    """Layer normalisation without a bias, with the input's dtype, where heads have one weight."""
    x, weight = hidden_states, module.weight
    if weight.dim() != 1 or x.dtype.itemsize > 4:
        return as_before(module, x)
    return functional.layer_norm(x, weight.shape, weight, None, module.variance_epsilon, out_dtype=x.dtype)


@register_layer(*_paths(LIKE_OLMO))
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


@register_layer(*_paths(GROUP_NORMS))
def group_norm(module: Any, input: Tensor, quant_states: Tensor | None = None) -> Tensor:
    """Group normalisation."""
    return functional.group_norm(input, module.num_groups, module.weight, module.bias, module.eps)


@register_layer(*_paths(DROP_PATHS))
def drop_path(module: Any, hidden_states: Tensor) -> Tensor:
    """Drop path."""
    return functional.drop_path(hidden_states, module.drop_prob, module.training)


register_layer(*_paths(FROZEN_BATCH_NORMS))(frozen_batch_norm)
