"""The classes of other libraries that `replace` knows, where these are installed: each computes as before.

Classes that share a forward, as it is written, are tested by the first of them.
"""

import ast
import importlib
import importlib.util
import inspect
import types
from pathlib import Path

import pytest
import torch
from support.hugging_face import imported
from support.reference import error, leave_initial_values, unit

import normreg
from normreg.models import registry

SIZE = 16
ARGUMENTS = {  # by the names of a constructor's parameters without a default
    "config": None,
    "drop_prob": 0.5,
    "num_groups": 4,
    "num_channels": SIZE,
    "normalized_shape": SIZE,
    "elementwise_affine": True,
    "num_features": SIZE,
    "n": SIZE,
}
SPECIAL = {
    "FalconH1RMSNormGated": dict(hidden_size=SIZE, n_groups=2),
    "FP32LayerNorm": dict(normalized_shape=SIZE),
    "SDCascadeLayerNorm": dict(normalized_shape=SIZE),
    "WuerstchenLayerNorm": dict(normalized_shape=SIZE),
    "BitGroupNormActivation": dict(
        config=types.SimpleNamespace(num_groups=4, hidden_act="relu"), num_channels=SIZE
    ),
    "ChameleonLayerNorm": dict(hidden_size=(4, SIZE)),
    "Emu3VQVAEGroupNorm": dict(num_groups=4, num_channels=SIZE),
}
MODES = ("bfloat16", "float32", "bfloat16 beside float32")


def written(path):
    """The source of a class's forward and of `_norm`, without docstrings; None if there is none."""
    module, _, name = path.rpartition(".")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        return None
    tree = ast.parse(Path(spec.origin).read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            methods = [
                n for n in node.body if isinstance(n, ast.FunctionDef) and n.name in ("forward", "_norm")
            ]
            for method in methods:
                if ast.get_docstring(method) is not None:
                    method.body.pop(0)
            return f"{node.bases and ast.unparse(node.bases[0])}\n" + "\n".join(map(ast.unparse, methods))
    return None


def first_of_each_forward(library):
    """{what is written: path}, and the known paths that the installed library does not have."""
    found, missing = {}, []
    for path, forward in registry.FORWARDS.items():
        if path.startswith(f"{library}."):
            source = written(path)
            if source is None:
                missing.append(path)
            elif "_adaptive" not in forward.__module__:  # test_adaptive.py has these
                found.setdefault((forward, source), path)
    return [*found.values()], missing


def built(cls):
    parameters = inspect.signature(cls).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
    if "hidden_size" in inspect.signature(cls).parameters:  # it may be None
        needed.append("hidden_size")
    given = {name: ARGUMENTS.get(name, SIZE) for name in needed}
    layer = cls(**SPECIAL.get(cls.__name__, given))
    leave_initial_values(layer)
    return layer


def samples(layer):
    names = "2d", "SDCascade", "Wuerstchen"
    if isinstance(layer, torch.nn.GroupNorm) or any(name in type(layer).__name__ for name in names):
        return torch.randn(3, SIZE, 4, 5)
    return torch.randn(3, 4, SIZE)


def step(layer, inputs, dy):
    torch.manual_seed(7)
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = layer(*inputs)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(y, [*inputs, *parameters], dy.to(y.dtype), allow_unused=True)
    return [y.detach(), *gradients]


def assert_computes_as_before(path, mode):
    module, _, name = path.rpartition(".")
    layer = built(getattr(importlib.import_module(module), name))
    dtype = torch.bfloat16 if mode.startswith("bfloat16") else torch.float32
    inputs = [samples(layer).to(dtype) for _ in range(2 if "Gated" in name else 1)]
    dy = torch.randn_like(inputs[0])
    if mode == "bfloat16":
        layer = layer.bfloat16()
    if "DropPath" in name:
        layer.eval()
    try:
        theirs = step(layer, inputs, dy)
    except RuntimeError:  # torch's own operator wants one dtype
        return
    normreg.replace(layer)
    assert issubclass(type(layer), registry.Foreign)
    for ours, before in zip(step(layer, inputs, dy), theirs, strict=True):
        if before is not None:
            seen = (path, mode, ours.dtype, before.dtype)
            assert (ours.dtype, ours.shape) == (before.dtype, before.shape), seen
            rounded_to = torch.bfloat16 if mode.startswith("bfloat16") else before.dtype
            assert error(ours, before.double()) <= 24 * unit(before.double(), rounded_to), seen


FIRST = [  # one of each function, of the models that are imported most quickly
    "transformers.models.llama.modeling_llama.LlamaRMSNorm",
    "transformers.models.helium.modeling_helium.HeliumRMSNorm",
    "transformers.models.gemma3n.modeling_gemma3n.Gemma3nRMSNorm",
    "transformers.models.nanochat.modeling_nanochat.NanoChatRMSNorm",
    "transformers.models.gemma.modeling_gemma.GemmaRMSNorm",
    "transformers.models.cohere.modeling_cohere.CohereLayerNorm",
    "transformers.models.olmo.modeling_olmo.OlmoLayerNorm",
    "transformers.models.deberta.modeling_deberta.DebertaLayerNorm",
    "transformers.models.nemotron.modeling_nemotron.NemotronLayerNorm1P",
    "transformers.models.eomt.modeling_eomt.EomtLayerNorm2d",
    "transformers.models.poolformer.modeling_poolformer.PoolFormerGroupNorm",
    "transformers.models.bit.modeling_bit.BitGroupNormActivation",
    "transformers.models.chameleon.modeling_chameleon.ChameleonLayerNorm",
    "transformers.models.convnext.modeling_convnext.ConvNextDropPath",
    "transformers.models.mamba2.modeling_mamba2.MambaRMSNormGated",
    "transformers.models.qwen3_next.modeling_qwen3_next.Qwen3NextRMSNormGated",
    "transformers.models.kimi_linear.modeling_kimi_linear.KimiLinearRMSNormGated",
    "transformers.models.falcon_h1.modeling_falcon_h1.FalconH1RMSNormGated",
    "transformers.models.qwen4_exp.modeling_qwen4_exp.Qwen4ExpTextRMSNorm",
]


@pytest.mark.some(8)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", FIRST)
def test_computes_as_before(path, mode):
    pytest.importorskip("transformers")
    with imported():
        assert_computes_as_before(path, mode)


def installed(library):
    """`imported` of the library, where it is."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    return imported(library)


@pytest.mark.parametrize("library", ["transformers", "diffusers", "timm"])
def test_the_known_classes_exist(library):
    """A class that was renamed would be left alone in silence."""
    with installed(library):
        found, missing = first_of_each_forward(library)
    assert found
    assert missing == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("library", ["transformers", "diffusers"])
def test_each_forward_computes_as_before(library):
    with installed(library):
        for path in first_of_each_forward(library)[0]:
            for mode in MODES:
                assert_computes_as_before(path, mode)
