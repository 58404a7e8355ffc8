"""The backend for torch.compile: by its name, before another backend, with some patterns, and bad input."""

import copy
import shutil
from importlib.metadata import entry_points

import pytest
import torch
from fusible import BLOCKS, PostNorm, assert_close, fresh_graphs, made, patterns, step  # noqa: F401
from torch import nn
from torch._inductor import config as inductor_config

import normreg
from normreg.models.fusion.matches import PATTERNS

installed = pytest.mark.skipif(
    not entry_points(group="torch_dynamo_backends", name="normreg"),
    reason="normreg is not installed, so that torch does not know its backend by name",
)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("backend", [pytest.param("normreg", marks=installed), "fused", "aot_eager"])
def test_a_compiled_model_is_fused(device, launches, block, backend):
    """As "normreg", which normreg registers, and in front of a backend that differentiates the graph."""
    model, twin, x = made(block, device)
    normreg.replace(model)
    given = {"normreg": "normreg", "fused": normreg.fused()}.get(backend) or normreg.fused(backend)
    compiled = torch.compile(model, backend=given, fullgraph=True)
    for training in (True, False):
        # a graph that is differentiated ahead of time takes its input as it is
        results = step(compiled.train(training), x, passed_on=lambda leaf: leaf)
        assert_close(results, step(twin.train(training), x, passed_on=lambda leaf: leaf))
    assert launches


@pytest.mark.parametrize("block", ["with downsample", "post-norm", "pre-norm"])
def test_a_fused_model_compiles_without_a_break(device, block):
    """`replace(fuse=True)` stands back where the user compiles."""
    model, twin, x = made(block, device)
    normreg.replace(model, fuse=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for training in (True, False):
        results = step(compiled.train(training), x, passed_on=lambda leaf: leaf)
        assert_close(results, step(twin.train(training), x, passed_on=lambda leaf: leaf))


def operators(graph):
    return [node.target.__name__ for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]


def test_another_backend_is_handed_the_fused_graph(device):
    given = []

    def backend(graph_module, example_inputs):
        given.append(graph_module)
        return graph_module.forward

    model, twin, x = made("post-norm", device)
    normreg.replace(model)
    model.compile(backend=normreg.fused(backend))
    assert_close(step(model, x), step(twin, x))
    fused = ["dropout_add_norm.default", "bias_act_dropout.default", "dropout_add_norm.default"]
    # each with its seed
    assert operators(given[0].graph) == [name for one in fused for name in ("draw_seed.default", one)]
    given[0].graph.lint()


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of its own modules, on their first import
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
def test_inductor_compiles_the_fused_graph(device, launches):
    model, twin, x = made("post-norm", device, torch.float32)
    normreg.replace(model)
    with inductor_config.patch(fx_graph_cache=False, compile_threads=1):
        compiled = torch.compile(model.eval(), backend=normreg.fused("inductor"))
        launches.clear()
        y = compiled(x)
    assert len(launches) == 2  # of the two sums and norms
    torch.testing.assert_close(y, twin.eval()(x))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_some_patterns(device, pattern):
    wanted = {
        "ada_layer_norm": [],
        "ada_rms_norm": [],
        "batch_norm_act": [],
        "dropout_add_layer_norm": ["dropout1 -> + -> norm1", "dropout2 -> + -> norm2"],
        "dropout_add_rms_norm": [],
        "bias_act_dropout": ["linear1 -> activation -> dropout"],
        "dropout_add": ["dropout1 -> +", "dropout2 -> +"],
        "group_norm_act": [],
    }
    model, twin, x = made("post-norm", device)
    assert patterns(normreg.replace(model, fuse=[pattern], example_inputs=x)) == wanted[pattern]
    assert_close(step(model, x), step(twin, x))


@pytest.mark.parametrize(
    ("backend", "error", "told"),
    [
        ("indctor", ValueError, r"got 'indctor': torch.compiler.list_backends\(\) has them"),
        (3, TypeError, "got 3: pass such as 'inductor'"),
    ],
)
def test_an_unknown_backend_is_refused_at_once(backend, error, told):
    with pytest.raises(error, match=told):
        normreg.fused(backend)


@pytest.mark.parametrize("given", [["layer_norm"], "relu", ["dropout_add", "batch_norm"]])
def test_an_unknown_pattern_is_refused(device, given):
    model = PostNorm().to(device)
    for function in (lambda: normreg.fused(patterns=given), lambda: normreg.replace(model, fuse=given)):
        with pytest.raises(
            ValueError,
            match=r"expected names of what can be fused, ada_layer_norm, .* got '(layer_norm|relu|batch)",
        ):
            function()
    assert type(model.norm1) is nn.LayerNorm
    with pytest.raises(Exception, match="no-such-backend"):
        torch.compile(model, backend=normreg.fused("no-such-backend"))(torch.randn(2, 8, device=device))


@pytest.mark.parametrize("how", ["in place", "wrapped", "inside"])
def test_what_the_user_compiled_stays_so(device, how):
    model, twin, x = made("post-norm", device)
    compiled = []

    def backend(graph_module, example_inputs):
        compiled.append(graph_module)
        return graph_module.forward

    given = model
    if how == "in place":
        model.compile(backend=backend)
    elif how == "wrapped":
        given = torch.compile(model, backend=backend)
    else:
        model.compile(backend=backend)
        given = nn.Sequential(model)
    report = normreg.replace(given, fuse=True, example_inputs=x)
    (skip,) = report.not_fused
    assert skip.reason.startswith("it is compiled already: use torch.compile(model, backend=normreg.fused(")
    assert report.changed
    assert not report.fused
    assert_close(step(given, x), step(twin, x))
    assert compiled
    normreg.restore(given)
    assert how == "wrapped" or model._compiled_call_impl is not None


def test_where_the_graph_breaks_the_report_says(device):
    class Broken(PostNorm):
        def forward(self, x):
            y = super().forward(x)
            torch._dynamo.graph_break()
            return super().forward(y)

    model = Broken().double().to(device)
    twin = copy.deepcopy(model)
    x = torch.randn(3, 8, device=device, dtype=torch.float64)
    normreg.replace(twin)
    report = normreg.replace(model, fuse=True, example_inputs=x)
    assert patterns(report) == BLOCKS["post-norm"][2]  # named once
    (skip,) = report.not_fused
    assert skip.kind.startswith("graph break at")
    assert "graph_break()" in skip.reason
    assert "test_fused_backend.py, line" in skip.kind
    assert_close(step(model, x), step(twin, x))


def test_a_forward_that_is_not_traced_runs_as_it_did(device):
    class Untraced(PostNorm):
        @torch.compiler.disable
        def forward(self, x):
            return super().forward(x)

    model = Untraced().double().to(device)
    twin = copy.deepcopy(model)
    x = torch.randn(3, 8, device=device, dtype=torch.float64)
    normreg.replace(twin)
    report = normreg.replace(model, fuse=True, example_inputs=x)
    (skip,) = report.not_fused
    assert "no graph" in skip.reason
    assert_close(step(model, x), step(twin, x))


TRANSFORMS = {
    "functional_call": lambda m, x: torch.func.functional_call(m, dict(m.named_parameters()), x),
    "grad": lambda m, x: torch.func.grad(lambda p: torch.func.functional_call(m, p, x).square().sum())(
        dict(m.named_parameters())
    )["linear1.weight"],
    "vmap": lambda m, x: torch.vmap(m)(torch.stack([x, x * 2])),
    "jvp": lambda m, x: torch.func.jvp(m, (x,), (x,))[1],
    "export": lambda m, x: torch.export.export(m, (x,)).module()(x),
    "make_fx": lambda m, x: torch.fx.experimental.proxy_tensor.make_fx(m)(x)(x),
    "symbolic_trace": lambda m, x: torch.fx.symbolic_trace(m)(x),
    "deterministic": lambda m, x: m(x),
    "inference_mode": lambda m, x: torch.inference_mode()(m)(x),
    "meta": lambda m, x: copy.deepcopy(m).to("meta")(x.to("meta")).shape.numel() * torch.ones(()),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_under_torchs_transforms(device, transform):
    model, twin, x = made("pre-norm", device)
    normreg.replace(model.eval(), fuse=True), normreg.replace(twin.eval())
    model(x)
    torch.testing.assert_close(transform(model, x), transform(twin, x))


def test_second_derivatives(device):
    model, _, x = made("post-norm", device)
    normreg.replace(model, fuse=True)

    def seeded(x):
        torch.manual_seed(2)
        return model(x)

    assert torch.autograd.gradcheck(seeded, x[:1, :2].requires_grad_())
    assert torch.autograd.gradgradcheck(seeded, x[:1, :2].requires_grad_())
