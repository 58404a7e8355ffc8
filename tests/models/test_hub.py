"""`normreg.hub`: what `kernels` makes of the layers of transformers, and of classes that nobody knows."""

import copy
from pathlib import Path

import programs
import pytest
import torch
from known_layers import MODES, SIZE, assert_equal, case_of, step
from support import hub
from support.hugging_face import imported
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

import normreg
from normreg.models import registry

pytestmark = pytest.mark.skipif(hub.spec() is None, reason="Hugging Face's kernels is not installed")

ONE_OF_EACH = {  # forward, as it is written
    "llama.modeling_llama.LlamaRMSNorm": "RMSNorm",
    "olmo2.modeling_olmo2.Olmo2RMSNorm": "RMSNorm",
    "nemotron_h.modeling_nemotron_h.NemotronHRMSNorm": "RMSNorm",
    "qwen3_5.modeling_qwen3_5.Qwen3_5RMSNorm": "RMSNormZeroCentered",
    "qwen3_next.modeling_qwen3_next.Qwen3NextRMSNormGated": "RMSNormGated",
    "kimi_linear.modeling_kimi_linear.KimiLinearRMSNormGated": "RMSNormGated",
}
ONE_OF_EACH = {f"transformers.models.{path}": name for path, name in ONE_OF_EACH.items()}


def compiled(layer, backend):
    """The layer, compiled whole, and a list that is filled with operators of the graphs of "aot_eager"."""
    torch._dynamo.reset()
    called = []

    def record(graph, _):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph)

    recording = aot_autograd(fw_compiler=record, bw_compiler=record)
    backend = recording if backend == "aot_eager" else backend
    return torch.compile(layer, fullgraph=True, backend=backend), called


def assert_computes_as_before(path, name, mode, by):
    layer, inputs, dy = case_of(path, mode)
    theirs = step(layer, inputs, dy)
    with hub.decorated_as(name, type(layer)):
        assert "forward" in vars(hub.kernelized(layer, compiled=by != "eager"))
        if by == "eager":
            with hub.paths_taken() as reasons:
                assert_equal(step(layer, inputs, dy), theirs, mode, path)
            assert reasons == [None], path
        else:
            function, called = compiled(layer, by)
            assert_equal(step(function, inputs, dy), theirs, mode, path)
            ours = [name for name in called if name.startswith("normreg.")]
            assert by == "inductor" or len(ours) == 2, (path, called)


@pytest.fixture
def transformers():
    pytest.importorskip("transformers")
    with imported() as package:
        yield package


@pytest.mark.place("Hugging Face's kernels")
@pytest.mark.some(9)
@pytest.mark.parametrize("by", ["eager", "aot_eager"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", ONE_OF_EACH)
def test_computes_as_before(transformers, path, mode, by):
    assert_computes_as_before(path, ONE_OF_EACH[path], mode, by)


@pytest.mark.some(1)
@pytest.mark.parametrize("path", [*ONE_OF_EACH][-2:])
def test_inductor_compiles_it_whole(transformers, path):
    assert_computes_as_before(path, ONE_OF_EACH[path], "float32", "inductor")


def test_every_decorated_class_is_known(transformers):
    """A class that is not known is computed by its name, and not with float32 beside 16 bits."""
    found = hub.decorated()
    assert found.items() >= ONE_OF_EACH.items()
    assert found.keys() <= registry.FORWARDS.keys()
    page = " ".join((Path(__file__).parents[2] / "docs/hub.md").read_text().split())
    assert f"with which {len(found)} classes of transformers 5.23 are decorated" in page


@pytest.mark.place("Hugging Face's kernels")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("by", ["eager", "aot_eager"])
@pytest.mark.parametrize("mode", MODES)
def test_every_decorated_class_computes_as_before(transformers, mode, by):
    for path, name in hub.decorated().items():
        assert_computes_as_before(path, name, mode, by)


class Norm(nn.Module):
    """What a model's author decorates."""

    given = torch.float32

    def __init__(self, eps_name="eps"):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(SIZE) + 0.5)
        setattr(self, eps_name, 1e-3)

    def forward(self, hidden_states):
        x = hidden_states.float()
        x = x * (x.square().mean(-1, keepdim=True) + vars(self).get("eps", 1e-3)).rsqrt()
        return self.weight * x.to(hidden_states.dtype)


class Centered(Norm):
    def forward(self, x):
        return Norm.forward(self, x) * (1 + 1 / self.weight)


class Gated(Norm):
    activation = "sigmoid"

    def forward(self, hidden_states, gate=None):
        return super().forward(hidden_states) * gate.sigmoid()


class Rounded(Norm):
    given = torch.bfloat16

    def forward(self, hidden_states):
        return super().forward(hidden_states).to(hidden_states.dtype)


class Doubled(Norm):
    def forward(self, hidden_states):
        return 2 * super().forward(hidden_states)


class Named(Norm):
    """The layer, with another way to make it."""


class OfTorch(nn.LayerNorm):
    """A class to decorate in the place of torch's."""

    def __init__(self):
        super().__init__(SIZE, eps=1e-3)
        nn.init.uniform_(self.weight, 0.5, 1.5)


UNKNOWN = {  # layer, the class that is decorated and as what, the kernels that are expected
    "its name says what it is": (Norm, Norm, "RMSNorm", [None]),
    "zero-centred": (Centered, Centered, "RMSNormZeroCentered", [None]),
    "gated": (Gated, Gated, "RMSNormGated", [None]),
    "torch.nn's": (OfTorch, OfTorch, "LayerNorm", [None]),
    "derived, with the same forward": (Named, Norm, "RMSNorm", [None]),
    "derived, with another forward": (Doubled, Norm, "RMSNorm", []),
    "its epsilon has another name": (lambda: Norm("epsilon"), Norm, "RMSNorm", []),
    "of two dtypes": (Rounded, Rounded, "RMSNorm", []),
}


@pytest.mark.parametrize(("make", "cls", "name", "expected"), UNKNOWN.values(), ids=UNKNOWN)
def test_classes_that_nobody_knows(device, make, cls, name, expected):
    layer = make().to(device)
    dtype = getattr(layer, "given", torch.float32)
    inputs = [torch.randn(3, 4, SIZE, device=device).to(dtype) for _ in range(1 + (cls is Gated))]
    dy = torch.randn_like(inputs[0])
    theirs = step(layer, inputs, dy)
    with hub.decorated_as(name, cls):
        hub.kernelized(layer, compiled=True)
        with hub.paths_taken() as reasons:
            assert_equal(step(layer, inputs, dy), theirs, str(dtype), name)
        assert reasons == expected
        assert_equal(step(compiled(layer, "aot_eager")[0], inputs, dy), theirs, str(dtype), name)


def test_a_replaced_layer_computes_the_same(transformers, device):
    """`replace`, then `kernelize`: neither hides the other's."""
    path = "transformers.models.llama.modeling_llama.LlamaRMSNorm"
    layer, inputs, dy = case_of(path, "float32")
    theirs = step(copy.deepcopy(layer), inputs, dy)
    with hub.decorated_as("RMSNorm", type(layer)):
        normreg.replace(layer)
        hub.kernelized(layer, training=False)
        with hub.paths_taken() as reasons:
            assert_equal(step(layer, inputs, dy), theirs, "float32", path)
    assert reasons == [None]


def test_trains_models_of_transformers(transformers, tmp_path):
    """The package is imported with `kernels`, which it was without in this process."""
    folder = normreg.hub.write(tmp_path / "layers")
    programs.interpreted("hub_model", tmp_path / "log", folder)
