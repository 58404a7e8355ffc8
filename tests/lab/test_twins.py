"""Twins: launches of kernels in the graphs of torch.compile, and in the programs that Inductor writes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from operations import LAYERS, every_layer
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor import config
from torch._inductor.utils import run_and_get_code, tensor_is_aligned

import normreg
from normreg import functional
from normreg.kernels import twins
from normreg.kernels.dropout import elements
from normreg.ops import recording

TWIN = "triton_kernel_wrapper_functional"


@pytest.fixture(autouse=True)
def guarded_memory():
    """Guards nothing: what the compiler itself allocates must not be moved between guard bands."""


@pytest.fixture(autouse=True)
def compiled_afresh(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # 3.9 warns where torch's launches do not say
    # as Inductor does for tensors of a GPU, and eager mode for all
    monkeypatch.setattr("torch._inductor.graph.should_assume_input_aligned", tensor_is_aligned)
    torch._dynamo.reset()
    with config.patch(fx_graph_cache=False), torch._functorch.config.patch(enable_autograd_cache=False):
        yield
    torch._dynamo.reset()


class Graphs:
    """A compiler that runs graphs as they are, and keeps what their nodes call."""

    def __init__(self):
        self.nodes = []

    def __call__(self, graph, inputs):
        self.nodes += [node for node in graph.graph.nodes if node.op == "call_function"]
        return make_boxed_func(graph)

    def calls(self, word):
        return [node for node in self.nodes if word in str(node.target)]


def step(row, kind, backend, training):
    """Results, gradients and state of a compiled layer."""
    torch.manual_seed(3)
    layer = row.make().train(training)
    x = torch.randn(5, *row.sample).requires_grad_()
    with normreg.recorded_as(kind):
        y = torch.compile(layer, backend=backend, fullgraph=True)(x)
        gradients = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    return [y.detach(), *gradients, *layer.buffers()]


@pytest.mark.place("torch.compile")
@pytest.mark.some(12)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@every_layer
def test_graphs_hold_every_launch(row, training, launches):
    """Forward and backward; what a launch only reads is not cloned for it, and results are the same bits."""
    results, launched = [], {}
    graphs = {kind: Graphs() for kind in ("operators", "kernels")}
    for kind, found in graphs.items():
        launches.clear()
        backend = aot_autograd(fw_compiler=found, bw_compiler=found)
        results.append(step(row, kind, backend, training))
        launched[kind] = len(launches)
    assert graphs["operators"].calls(TWIN) == []
    assert {str(node.target) for node in graphs["kernels"].calls("normreg")} <= {"normreg.draw_seed.default"}
    assert len(graphs["kernels"].calls(TWIN)) == launched["operators"]
    for node in graphs["kernels"].calls(TWIN):
        given = node.kwargs["kwargs"]
        for name in node.kwargs["tensors_to_clone"]:
            assert given[name].op == "placeholder" or "empty" in str(given[name].target), name
            assert "running" in name or "tracked" in name or given[name].op != "placeholder", name
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.place("torch.compile")
@pytest.mark.some(3)
@pytest.mark.parametrize("kind", ["BatchNormAct2d", "DropoutAddLayerNorm", "GroupNorm", "QKNorm"])
def test_inductor_launches_kernels_itself(kind):
    """The program that Inductor writes names them, calls no operator of ours, and computes the same bits."""
    row = LAYERS[kind]
    results = [step(row, how, "inductor", True) for how in ("operators", "kernels")]
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
    layer, x = row.make().eval(), torch.randn(5, *row.sample)
    with torch.no_grad():
        _, (program,) = run_and_get_code(torch.compile(layer, fullgraph=True), x)
    assert "torch.ops.normreg" not in program
    assert "_kernel_0.run(" in program
    assert "import normreg.kernels." in program
    assert "clone" not in program


def test_a_seed_is_handed_over_in_memory():
    """Inductor would give a scalar of the CPU by value."""
    x = torch.ones(4096, requires_grad=True)
    y = torch.compile(lambda x: functional.dropout(x, 0.5), fullgraph=True)(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx, y)


def test_a_view_that_begins_within_a_word():
    """Inductor knows of a view whether its address is a multiple of 16 bytes."""

    def call(x):
        return functional.layer_norm(x[1:].view(8, 64), (64,))

    x = torch.randn(8 * 64 + 1)
    assert torch.equal(torch.compile(call, fullgraph=True)(x), call(x))


@pytest.mark.parametrize("eps", [np.float64(1e-5), 1, float("inf")], ids=repr)
def test_numbers_of_other_types(eps):
    """The source of a twin holds them."""
    layer, x = normreg.LayerNorm(64, eps=eps), torch.randn(5, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x))


def test_numbers_beyond_32_bits():
    """Elements of a dropout, or of a channel, of more than 2^31."""
    source = twins.Written(elements.dropout_kernel)
    widths = [source.value("n", None, n) for n in (-(2**31), 2**31 - 1, 2**31)]
    assert widths == [f"tl.cast(n, tl.int{bits})" for bits in (32, 32, 64)]


def test_layouts_that_inductor_may_change():
    """Kernels are recorded for strides; torch would change these in silence."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), normreg.BatchNorm2d(8), torch.nn.Flatten())
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), config.patch(triton_kernel_default_layout_constraint="flexible_layout"):
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


def test_operators_where_a_size_is_symbolic():
    found = Graphs()
    compiled = torch.compile(
        lambda x: functional.rms_norm(x, (64,)),
        backend=aot_autograd(fw_compiler=found),
        fullgraph=True,
        dynamic=True,
    )
    for batch in (3, 5):
        compiled(torch.randn(batch, 64))
    assert len(found.calls("normreg")) == 1
    assert found.calls(TWIN) == []


def test_caches_of_compiled_graphs_tell_kernels_by_their_source(monkeypatch):
    (known_by,) = torch._library.triton.get_triton_kernels_for_op("normreg::layer_norm")
    before = known_by.src
    with normreg.recorded_as("operators"):
        assert known_by.src != before
    assert known_by.src == before
    monkeypatch.setattr(recording, "digest_of_kernels", lambda: "edited")
    assert known_by.src != before


def test_the_digest_is_also_of_operators(monkeypatch):
    """Launches and derivatives that a cached graph holds are decided in their files, too."""
    read, before = Path.read_bytes, recording.digest_of_kernels.__wrapped__()
    edited = Path(recording.__file__).with_name("batch_norm.py")
    monkeypatch.setattr(Path, "read_bytes", lambda file: read(file) + b"#" * (file.name == edited.name))
    assert recording.digest_of_kernels.__wrapped__() != before


def test_recorded_as_says_what_it_takes():
    with pytest.raises(ValueError, match=r"^expected 'kernels' or 'operators', got 'triton': pass"):
        normreg.recorded_as("triton")


@pytest.mark.place("AOTInductor")
def test_an_exported_program_holds_operators_until_it_is_compiled():
    """AOTInductor's program launches the kernels; on a CPU it ends for want of their launchers in C++."""
    model = torch.nn.Sequential(normreg.LayerNorm(64), torch.nn.ReLU(), normreg.RMSNorm(64)).eval()
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(8, 64),)).run_decompositions({})
        assert sum("normreg" in str(node.target) for node in program.graph.nodes) == 2
        options = {"triton.autotune_at_compile_time": False}
        with pytest.raises(RuntimeError, match=r"layer_norm_forward_kernel_\d\b") as stopped:
            torch._inductor.aoti_compile_and_package(program, inductor_configs=options)
    assert "torch.ops.normreg" not in str(stopped.value)


def test_every_operator_is_known_to_caches():
    for name in dir(torch.ops.normreg):
        operator = getattr(torch.ops.normreg, name, None)
        if hasattr(operator, "default") and name != "draw_seed":  # which launches nothing of ours
            assert torch._library.triton.get_triton_kernels_for_op(operator.default._name), name
