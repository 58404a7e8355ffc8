"""The classes of other libraries that `replace` knows, where these are installed: each computes as before.

Classes that share a forward, as it is written, are tested by the first of them.
"""

import ast
import importlib.util
from pathlib import Path

import pytest
from known_layers import MODES, assert_equal, case_of, step
from support import torchvision
from support.hugging_face import imported

import normreg
from normreg.models import registry


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


def assert_computes_as_before(path, mode):
    layer, inputs, dy = case_of(path, mode)
    try:
        theirs = step(layer, inputs, dy)
    except RuntimeError:  # torch's own operator wants one dtype
        return
    normreg.replace(layer)
    assert issubclass(type(layer), registry.Foreign)
    assert_equal(step(layer, inputs, dy), theirs, mode, path)


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
    with torchvision.at_hand(), installed(library):
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
