"""Layers of other libraries that modulate a norm by an embedding: each computes as before."""

import copy
import importlib
import importlib.util

import pytest
import torch
from support.hugging_face import imported
from support.reference import error, leave_initial_values, unit

import normreg
from normreg.models import registry

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:DeprecationWarning", "ignore::FutureWarning"
)
SIZE = 16
NORMALIZATION = "diffusers.models.normalization"
TRANSFORMERS = "diffusers.models.transformers"
OMNI = "transformers.models.qwen2_5_omni.modeling_qwen2_5_omni"


def tokens():
    return torch.randn(2, 5, SIZE)


def embedding():
    return torch.randn(2, SIZE)


def two_embeddings():
    return dict(hidden_states=tokens(), emb=embedding(), token_replace_emb=embedding())


# class: arguments of its constructor, and of its forward
ADAPTIVE = {
    f"{NORMALIZATION}.AdaLayerNorm": (
        dict(embedding_dim=SIZE, chunk_dim=1, output_dim=2 * SIZE),
        lambda: dict(x=tokens(), temb=embedding()),
    ),
    f"{NORMALIZATION}.AdaLayerNormZero": (
        dict(embedding_dim=SIZE),
        lambda: dict(x=tokens(), emb=embedding()),
    ),
    f"{NORMALIZATION}.AdaLayerNormZeroSingle": (
        dict(embedding_dim=SIZE),
        lambda: dict(x=tokens(), emb=embedding()),
    ),
    f"{NORMALIZATION}.SD35AdaLayerNormZeroX": (
        dict(embedding_dim=SIZE),
        lambda: dict(hidden_states=tokens(), emb=embedding()),
    ),
    f"{NORMALIZATION}.LuminaRMSNormZero": (
        dict(embedding_dim=SIZE, norm_eps=1e-5, norm_elementwise_affine=True),
        lambda: dict(x=tokens(), emb=torch.randn(2, SIZE)),
    ),
    f"{NORMALIZATION}.AdaLayerNormContinuous": (
        dict(embedding_dim=SIZE, conditioning_embedding_dim=SIZE),
        lambda: dict(x=tokens(), conditioning_embedding=embedding()),
    ),
    f"{NORMALIZATION}.AdaLayerNormContinuous of RMSNorm": (
        dict(embedding_dim=SIZE, conditioning_embedding_dim=SIZE, norm_type="rms_norm"),
        lambda: dict(x=tokens(), conditioning_embedding=embedding()),
    ),
    f"{NORMALIZATION}.LuminaLayerNormContinuous": (
        dict(embedding_dim=SIZE, conditioning_embedding_dim=SIZE, out_dim=8),
        lambda: dict(x=tokens(), conditioning_embedding=embedding()),
    ),
    f"{NORMALIZATION}.CogView3PlusAdaLayerNormZeroTextImage": (
        dict(embedding_dim=SIZE, dim=SIZE),
        lambda: dict(x=tokens(), context=tokens(), emb=embedding()),
    ),
    f"{NORMALIZATION}.CogVideoXLayerNormZero": (
        dict(conditioning_dim=SIZE, embedding_dim=SIZE),
        lambda: dict(hidden_states=tokens(), encoder_hidden_states=tokens(), temb=embedding()),
    ),
    f"{TRANSFORMERS}.transformer_cogview4.CogView4AdaLayerNormContinuous": (
        dict(embedding_dim=SIZE, conditioning_embedding_dim=SIZE),
        lambda: dict(x=tokens(), conditioning_embedding=embedding()),
    ),
    f"{TRANSFORMERS}.transformer_flux3.Flux3AdaLayerNorm": (
        dict(dim=SIZE),
        lambda: dict(hidden_states=tokens(), temb=torch.randn(2, 5, SIZE)),
    ),
    f"{TRANSFORMERS}.transformer_cogview4.CogView4AdaLayerNormZero": (
        dict(embedding_dim=SIZE, dim=SIZE),
        lambda: dict(hidden_states=tokens(), encoder_hidden_states=tokens(), temb=embedding()),
    ),
    f"{TRANSFORMERS}.transformer_chroma.ChromaAdaLayerNormZeroPruned": (
        dict(embedding_dim=SIZE),
        lambda: dict(x=tokens(), emb=torch.randn(2, 6, SIZE)),
    ),
    f"{TRANSFORMERS}.transformer_chroma.ChromaAdaLayerNormZeroSinglePruned": (
        dict(embedding_dim=SIZE),
        lambda: dict(x=tokens(), emb=torch.randn(2, 3, SIZE)),
    ),
    f"{TRANSFORMERS}.transformer_chroma.ChromaAdaLayerNormContinuousPruned": (
        dict(embedding_dim=SIZE, conditioning_embedding_dim=SIZE),
        lambda: dict(x=tokens(), emb=torch.randn(2, 2, SIZE)),
    ),
    f"{TRANSFORMERS}.transformer_cosmos.CosmosAdaLayerNorm": (
        dict(in_features=SIZE, hidden_features=8),
        lambda: dict(hidden_states=tokens(), embedded_timestep=embedding(), temb=torch.randn(2, 3 * SIZE)),
    ),
    f"{TRANSFORMERS}.transformer_cosmos.CosmosAdaLayerNorm of tokens": (
        dict(in_features=SIZE, hidden_features=8),
        lambda: dict(hidden_states=tokens(), embedded_timestep=tokens()),
    ),
    f"{TRANSFORMERS}.transformer_cosmos.CosmosAdaLayerNormZero": (
        dict(in_features=SIZE, hidden_features=8),
        lambda: dict(hidden_states=tokens(), embedded_timestep=embedding(), temb=torch.randn(2, 3 * SIZE)),
    ),
    f"{TRANSFORMERS}.transformer_easyanimate.EasyAnimateLayerNormZero": (
        dict(conditioning_dim=SIZE, embedding_dim=SIZE),
        lambda: dict(hidden_states=tokens(), encoder_hidden_states=tokens(), temb=embedding()),
    ),
    f"{TRANSFORMERS}.transformer_mochi.MochiRMSNormZero": (
        dict(embedding_dim=SIZE, hidden_dim=4 * SIZE),
        lambda: dict(hidden_states=tokens(), emb=embedding()),
    ),
    f"{TRANSFORMERS}.transformer_mochi.MochiLayerNormContinuous": (
        dict(embedding_dim=SIZE, conditioning_embedding_dim=SIZE),
        lambda: dict(x=tokens(), conditioning_embedding=embedding()),
    ),
    f"{TRANSFORMERS}.transformer_longcat_audio_dit.AudioDiTAdaLayerNormZeroFinal": (
        dict(dim=SIZE),
        lambda: dict(hidden_states=tokens(), embedding=embedding()),
    ),
    f"{TRANSFORMERS}.transformer_qwenimage21.QwenImage21AdaLayerNormContinuous": (
        dict(embedding_dim=SIZE, conditioning_embedding_dim=SIZE),
        lambda: dict(hidden_states=tokens(), conditioning_embedding=embedding()),
    ),
    f"{TRANSFORMERS}.transformer_hunyuan_video.HunyuanVideoTokenReplaceAdaLayerNormZero": (
        dict(embedding_dim=SIZE),
        lambda: dict(**two_embeddings(), first_frame_num_tokens=2),
    ),
    f"{TRANSFORMERS}.transformer_hunyuan_video.HunyuanVideoTokenReplaceAdaLayerNormZeroSingle": (
        dict(embedding_dim=SIZE),
        lambda: dict(**two_embeddings(), first_frame_num_tokens=2),
    ),
    f"{TRANSFORMERS}.sana_transformer.SanaModulatedNorm": (
        dict(dim=SIZE),
        lambda: dict(hidden_states=tokens(), temb=embedding(), scale_shift_table=torch.randn(2, SIZE)),
    ),
    f"{TRANSFORMERS}.transformer_sana_video.SanaModulatedNorm": (
        dict(dim=SIZE),
        lambda: dict(hidden_states=tokens(), temb=tokens(), scale_shift_table=torch.randn(2, SIZE)),
    ),
    f"{TRANSFORMERS}.transformer_minimax_h3.MiniMaxH3AdaLayerNormOut": (
        dict(hidden_size=SIZE, time_embed_dim=SIZE, eps=1e-6),
        lambda: dict(
            hidden_states=tokens()[:1], temb=embedding(), timestep_indices=torch.tensor([0, 1, 1, 0, 1])
        ),
    ),
    f"{OMNI}.Qwen2_5_OmniAdaLayerNormZero": (
        dict(dim=SIZE),
        lambda: dict(hidden_states=tokens(), emb=embedding()),
    ),
    f"{OMNI}.Qwen2_5_OmniAdaLayerNormZero_Final": (
        dict(dim=SIZE),
        lambda: dict(hidden_states=tokens(), emb=embedding()),
    ),
}


def outcome(layer, inputs):
    """Outputs and the gradients of all inputs and parameters."""
    leaves = {
        name: t.clone().requires_grad_(t.is_floating_point()) if isinstance(t, torch.Tensor) else t
        for name, t in inputs.items()
    }
    torch.manual_seed(5)
    outputs = layer(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum((y.double() * torch.randn_like(y, dtype=torch.float64)).sum() for y in outputs)
    wanted = [t for t in (*leaves.values(), *layer.parameters()) if getattr(t, "requires_grad", False)]
    return [*outputs, *torch.autograd.grad(loss, wanted, allow_unused=True)]


def converted(inputs, dtype):
    floating = {
        name: t for name, t in inputs.items() if isinstance(t, torch.Tensor) and t.is_floating_point()
    }
    return inputs | {name: t.to(dtype) for name, t in floating.items()}


def assert_as_before(layer, ours, inputs, units=16):
    exact = outcome(copy.deepcopy(layer).double(), converted(inputs, torch.float64))
    theirs, results = outcome(layer, inputs), outcome(ours, inputs)
    for result, before, truth in zip(results, theirs, exact, strict=True):
        if before is not None:
            assert (result.dtype, result.shape) == (before.dtype, before.shape)
            allowed = error(before, truth) + units * unit(truth, before.dtype)
            assert error(result, truth) <= allowed


def built(path):
    settings, inputs = ADAPTIVE[path]
    module, _, name = path.split()[0].rpartition(".")
    library = module.split(".")[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    with imported(library):
        layer = getattr(importlib.import_module(module), name)(**settings)
    leave_initial_values(layer)
    return layer, inputs()


ADAPTIVE |= {  # of the same forward
    f"{TRANSFORMERS}.transformer_glm_image.GlmImage{name}": ADAPTIVE[
        f"{TRANSFORMERS}.transformer_cogview4.CogView4{name}"
    ]
    for name in ("AdaLayerNormContinuous", "AdaLayerNormZero")
}


def test_each_function_is_tested():
    known = {path for path, forward in registry.FORWARDS.items() if "_adaptive" in forward.__module__}
    assert known == {path.split()[0] for path in ADAPTIVE}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", ADAPTIVE)
def test_adaptive_layers(launches, path, dtype):
    layer, inputs = built(path)
    layer, inputs = layer.to(dtype), converted(inputs, dtype)
    ours = copy.deepcopy(layer)
    normreg.replace(ours)
    assert type(ours) is registry.foreign_counterpart(type(layer))
    assert_as_before(layer, ours, inputs)
    assert "ada_norm_forward_kernel" in launches
    assert "layer_norm_forward_kernel" not in launches


def test_a_norm_that_somebody_listens_to_is_called(launches):
    layer, inputs = built(f"{NORMALIZATION}.AdaLayerNormZeroSingle")
    expected = layer(**inputs)
    normreg.replace(layer)
    seen = []
    handle = layer.norm.register_forward_hook(lambda module, arguments, y: seen.append(y))
    torch.testing.assert_close(layer(**inputs), expected)
    assert len(seen) == 1
    assert "ada_norm_forward_kernel" not in launches
    handle.remove()
    layer(**inputs)
    assert launches[-1] == "ada_norm_forward_kernel"
    assert len(seen) == 1
