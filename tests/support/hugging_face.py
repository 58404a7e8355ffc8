"""Models of the transformers package, built small and from random weights, and how they train."""

import contextlib
import copy
import importlib
import os
import sys

import torch

import normreg

os.environ["HF_HUB_OFFLINE"] = "1"  # before the package is imported: nothing is downloaded
ROWS = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=1)
TEXT = dict(vocab_size=37, **ROWS)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
IMAGE = dict(image_size=16, num_labels=3)


def tokens():
    return torch.randint(3, 30, (2, 5))


def of_text():
    ids = tokens()
    return dict(input_ids=ids, labels=ids)


def of_images(size=16):
    return dict(pixel_values=torch.randn(2, 3, size, size), labels=torch.tensor([0, 2]))


def of_mel():
    return dict(input_features=torch.randn(2, 8, 16), labels=tokens())


def of_sound():
    return dict(input_values=torch.randn(2, 200))


WHISPER = dict(
    vocab_size=37,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    dropout=0.0,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    num_mel_bins=8,
    pad_token_id=0,
    max_source_positions=8,
    max_target_positions=8,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
)
WAV2VEC2 = dict(
    **ROWS,
    vocab_size=8,
    conv_dim=(8, 8),
    conv_stride=(5, 2),
    conv_kernel=(10, 3),
    num_feat_extract_layers=2,
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    feat_proj_dropout=0.0,
    activation_dropout=0.0,
    layerdrop=0.0,
    final_dropout=0.0,
    mask_time_prob=0.0,
)
# class of the model: (settings, inputs, layers that are changed, what is fused where dropout drops)
MODELS = {
    "BertForMaskedLM": (
        TEXT | NO_DROPOUT,
        of_text,
        4 + 4,
        ["+ -> + -> LayerNorm", *["dropout -> + -> LayerNorm"] * 2],
    ),
    "GPT2LMHeadModel": (
        dict(
            vocab_size=37,
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_inner=24,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        of_text,
        3 + 4,
        ["attn.resid_dropout -> + -> ln_2", "h.0.mlp.dropout -> + -> ln_f"],
    ),
    "LlamaForCausalLM": (
        TEXT | dict(num_key_value_heads=1),
        of_text,
        3,
        ["+ -> post_attention_layernorm", "+ -> norm"],
    ),
    "GemmaForCausalLM": (
        TEXT | dict(num_key_value_heads=1, head_dim=8),
        of_text,
        3,
        ["+ -> post_attention_layernorm", "+ -> norm"],
    ),
    "Gemma3ForCausalLM": (
        TEXT | dict(num_key_value_heads=1, head_dim=8),
        of_text,
        4 + 2 + 1,
        ["+ -> pre_feedforward_layernorm", "+ -> norm"],
    ),
    "Qwen3ForCausalLM": (
        TEXT | dict(num_key_value_heads=1, head_dim=8),
        of_text,
        2 + 2 + 1,
        ["+ -> post_attention_layernorm", "+ -> norm"],
    ),
    "Mamba2ForCausalLM": (
        TEXT | dict(num_heads=2, head_dim=16, state_size=8, n_groups=1, chunk_size=4),
        of_text,
        3,
        ["+ -> norm_f"],
    ),
    "T5ForConditionalGeneration": (
        dict(
            vocab_size=37,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=1,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        ),
        of_text,
        7 + 9,
        [
            "0.dropout -> + -> 1.layer_norm",
            "act -> dropout",
            "block.0.layer.1.dropout -> + -> final_layer_norm",
            "0.dropout -> + -> 1.layer_norm",
            "1.dropout -> + -> 2.layer_norm",
            "act -> dropout",
            "block.0.layer.2.dropout -> + -> final_layer_norm",
        ],
    ),
    "ViTForImageClassification": (
        ROWS | NO_DROPOUT | IMAGE | dict(patch_size=8),
        of_images,
        3 + 2,
        ["dropout -> + -> layernorm_after", "layers.0.dropout -> + -> layernorm"],
    ),
    "SwinForImageClassification": (
        dict(
            patch_size=4,
            embed_dim=8,
            depths=[1, 1],
            num_heads=[1, 2],
            window_size=2,
            drop_path_rate=0.0,
        )
        | NO_DROPOUT
        | IMAGE,
        of_images,
        7 + 3,
        [
            "+ -> layernorm_after",
            "+ -> layernorm_after",
            "encoder.layers.1.blocks.0.dropout -> + -> layernorm",
            "dropout -> +",
        ],
    ),
    "ConvNextForImageClassification": (
        dict(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3),
        of_images,
        5,
        [],
    ),
    "ResNetForImageClassification": (
        dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3),
        of_images,
        6,
        [
            "normalization -> activation",
            "normalization -> activation",
            "layer.1.normalization -> + -> activation",
            "normalization -> activation",
            "shortcut.normalization -> + -> activation",
        ],
    ),
    "WhisperForConditionalGeneration": (
        WHISPER,
        of_mel,
        7,
        [
            "dropout -> + -> final_layer_norm",
            "dropout -> + -> layer_norm",
            "dropout -> + -> encoder_attn_layer_norm",
            "dropout -> + -> final_layer_norm",
            "dropout -> + -> layer_norm",
        ],
    ),
    "Wav2Vec2ForCTC": (
        WAV2VEC2,
        of_sound,
        5 + 6,
        [
            "+ -> layer_norm",
            "dropout -> + -> layer_norm",
            "intermediate_dense -> gelu -> intermediate_dropout",
            "feed_forward.output_dropout -> + -> final_layer_norm",
            "layer_norm -> gelu",
        ],
    ),
}


@contextlib.contextmanager
def imported(package="transformers"):
    """A package of Hugging Face's, where it is installed."""
    before = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # a package of this name that it would use; here, that is our folder
    try:
        yield importlib.import_module(package)
    finally:
        del sys.modules["kernels"]
        if before is not None:
            sys.modules["kernels"] = before


def dropping(settings):
    """The settings with dropout, but for what drops layers or paths."""
    kept = ("layerdrop", "drop_path_rate")
    return {k: 0.1 if "drop" in k and k not in kept else v for k, v in settings.items()}


def built(transformers, name, device, drops=False):
    settings, inputs, *_ = MODELS[name]
    settings = dropping(settings) if drops else settings
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**settings)).to(device).train()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms are not at their initial values, which hide mistakes
            torch.nn.init.normal_(parameter, 0.5, 0.2)
    return model, {key: value.to(device) for key, value in inputs().items()}


def train(model, inputs, steps):
    """Outputs, loss, gradients and running statistics of some steps of gradient descent."""
    results = []
    for _ in range(steps):
        model.zero_grad(set_to_none=True)
        outputs = model(**inputs)
        loss = outputs.loss if outputs.loss is not None else outputs.logits.square().mean()
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results += [outputs.logits.detach().clone(), loss.detach(), *(g.clone() for g in gradients)]
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
    return results + [b.clone() for b in model.buffers() if b.is_floating_point()]


def in_float64(model, inputs, steps):
    exact = copy.deepcopy(model).double()
    return train(exact, {key: v.double() if v.is_floating_point() else v for key, v in inputs.items()}, steps)


def assert_agrees(results, expected, exact):
    """Allows 32 times the original's own rounding; a wrong formula is a million times off."""
    for ours, theirs, want in zip(results, expected, exact, strict=True):
        scale = want.abs().max().item()
        rounding = (theirs - want).abs().max().item()
        bound = 32 * max(rounding, torch.finfo(torch.float32).eps * scale)
        assert (ours - theirs).abs().max().item() <= bound


def assert_trains(model, inputs, steps, **options):
    twin, exact = copy.deepcopy(model), in_float64(model, inputs, steps)
    report = normreg.replace(model, **options)
    assert report.skipped == ()
    assert_agrees(train(model, inputs, steps), train(twin, inputs, steps), exact)
    norms = [call for call in normreg.explain(model, **inputs) if "ropout" not in call.layer]
    assert {call.path for call in norms} == {"kernel"}
    return report
