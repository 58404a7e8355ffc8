"""Names of classes of transformers, as of its release 5.23, that compute alike."""

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
LIKE_MAMBA_2 = """
    bamba.BambaRMSNormGated granitemoehybrid.GraniteMoeHybridRMSNormGated mamba2.MambaRMSNormGated
    nemotron_h.NemotronHRMSNormGated zamba2.Zamba2RMSNormGated
"""
LIKE_QWEN_3_NEXT = """
    bailing_hybrid.BailingHybridRMSNormGated glm5_next.Glm5NextTextRMSNormGated
    kimi_linear.KimiLinearRMSNormGated olmo_hybrid.OlmoHybridRMSNormGated qwen3_5.Qwen3_5RMSNormGated
    qwen3_5_moe.Qwen3_5MoeRMSNormGated qwen3_next.Qwen3NextRMSNormGated qwen4_exp.Qwen4ExpTextRMSNormGated
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
