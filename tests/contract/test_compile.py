"""torch.compile: one graph without a break, in which the kernels run, with eager mode's results."""

import copy

import pytest
import torch
import torch.nn.functional as F
from compiling import OF_INDUCTOR, compiled
from compiling import compiled_afresh as compiled_afresh
from compiling import guarded_memory as guarded_memory
from compiling import inductor_afresh as inductor_afresh
from operations import every_layer
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import normreg
from normreg.functional import dispatch
from normreg.ops import seed

BATCHES = (2, 3, 5, 8)  # not 1, for which every operator is compiled by itself


@pytest.fixture
def launches(launches):
    """Launches of operators: of kernels that Inductor launches itself nothing would be heard."""
    with normreg.recorded_as("operators"):
        yield launches


@pytest.fixture
def seeds_of_graphs(device, monkeypatch):
    """Makes eager mode draw dropout's seeds as a compiled graph does; on a GPU it would draw others."""
    if device.type == "cuda":
        monkeypatch.setattr(seed, "draw", lambda device, _: seed.draw_seed(device=device))


def step(model, call, x):
    """Output, gradients and state after `call`, from the same random numbers every time."""
    torch.manual_seed(4)
    x = x.detach().clone().requires_grad_()
    y = call(x)
    gradients = torch.autograd.grad(y.square().sum(), [x, *model.parameters()])
    return [y.detach(), *gradients, *(t.clone() for t in model.state_dict().values())]


def assert_same(ours, theirs):
    for our, their in zip(ours, theirs, strict=True):
        assert torch.equal(our, their)
        assert our.stride() == their.stride()


def assert_steps_are_same(launches, eager, backend, batches):
    """Asserts that `eager` and a compiled copy agree in results and launches over a sweep of batches.

    launches: those so far, or None not to compare them.
    """
    model = copy.deepcopy(eager)
    call = compiled(model, backend)
    heard = [] if launches is None else launches
    for x in batches:
        heard.clear()
        theirs = step(eager, eager, x)
        expected = [*heard]
        heard.clear()
        assert_same(step(model, call, x), theirs)
        assert heard == expected
    return expected


@pytest.mark.place("torch.compile")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.some(12)
@every_layer
def test_layers(device, launches, seeds_of_graphs, row, training):
    """Two compilations, of which the second serves every further batch size."""
    layer = row.make().train(training).to(device)
    counter = CompileCounterWithBackend("aot_eager")
    batches = [torch.randn(batch, *row.sample, device=device) for batch in BATCHES]
    launched = assert_steps_are_same(launches, layer, counter, batches)
    assert counter.frame_count <= 2
    assert bool(launched) == (training or any(word in repr(layer) for word in ("Norm", "Act")))


def layers(device):
    return torch.nn.Sequential(
        normreg.BatchNorm1d(4), normreg.LayerNorm(4), normreg.RMSNorm(4), normreg.Dropout(0.25)
    ).to(device)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=OF_INDUCTOR)])
def test_model(device, launches, seeds_of_graphs, inductor_afresh, backend):
    assert_steps_are_same(launches, layers(device), backend, torch.randn(2, 6, 4, device=device))
    assert len(launches) == 2 + 3 + 3 + 2


@pytest.mark.parametrize("backend", [pytest.param("inductor", marks=OF_INDUCTOR)])
def test_a_model_whose_kernels_inductor_launches(device, seeds_of_graphs, inductor_afresh, backend):
    assert_steps_are_same(None, layers(device), backend, torch.randn(2, 6, 4, device=device))


def test_channels_last_and_16_bits(device, launches):
    model = torch.nn.Sequential(normreg.BatchNorm2d(4), normreg.Dropout2d(0.5)).to(device).bfloat16()
    x = torch.randn(3, 4, 2, 5, device=device).bfloat16().contiguous(memory_format=torch.channels_last)
    z = x.clone().requires_grad_()
    y = compiled(model)(z)
    (dx,) = torch.autograd.grad(y.float().square().sum(), z)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert dx.is_contiguous(memory_format=torch.channels_last)
    assert len(launches) == 4


def test_any_width(device):
    """Sizes of the normalised dimension and of the channels are no constants of the graph either."""
    rows = compiled(lambda x, w: normreg.functional.layer_norm(x, x.shape[-1:], w), dynamic=True)
    images = compiled(
        lambda x, w: normreg.functional.batch_norm(x, None, None, w, training=True), dynamic=True
    )
    for size in (4, 6):
        w = torch.rand(size, device=device)
        x = torch.randn(3, size, device=device)
        assert torch.equal(rows(x, w), normreg.functional.layer_norm(x, (size,), w))
        assert torch.equal(images(x, w), normreg.functional.batch_norm(x, None, None, w, training=True))


# Dropout.


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_masks_follow_the_generator(device, launches, backend):
    x = torch.ones(40, 50, device=device, requires_grad=True)
    call = compiled(lambda x: normreg.functional.dropout(x, 0.25), backend)
    masks = []
    for new_seed in (1, None, 1):
        if new_seed is not None:
            torch.manual_seed(new_seed)
        y = call(x)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(dx, y)
        masks.append(y != 0)
    first, second, again = masks
    assert torch.equal(first, again)
    for kept in (first, second, ~(first ^ second)):  # the last with probability 0.75^2 + 0.25^2
        p = 0.625 if kept is not first and kept is not second else 0.75
        assert abs(kept.double().mean().item() - p) < 5 * (p * (1 - p) / kept.numel()) ** 0.5
    assert launches == ["dropout_kernel"] * 6


def test_probabilities_of_a_schedule(device):
    call = compiled(lambda x, p: normreg.functional.dropout(x, p))
    x = torch.ones(2000, device=device)
    for p in (0.1, 0.25, 0.0, 1.0):
        assert abs((call(x, p) == 0).double().mean().item() - p) <= 5 * (p * (1 - p) / 2000) ** 0.5


def test_activation_checkpointing_draws_once(device, launches):
    """The recomputed forward has the first one's masks, and does not count its batch again."""
    model = layers(device)
    x = torch.randn(6, 4, device=device)
    plain, checkpointed = copy.deepcopy(model), copy.deepcopy(model)
    theirs = step(plain, compiled(plain), x)
    launches.clear()
    call = compiled(lambda x: checkpoint(checkpointed, x, use_reentrant=False))
    assert_same(step(checkpointed, call, x), theirs)
    assert checkpointed[0].num_batches_tracked.item() == 1
    assert launches.count("dropout_kernel") >= 2


def test_a_generator_breaks_the_graph(device):
    """A call with a generator breaks the graph, because graphs of torch.compile take none."""
    generator = torch.Generator(device)

    def f(x):
        return normreg.functional.dropout(x + 1, 0.5, generator=generator.manual_seed(3)) * 2

    x = torch.ones(50, device=device)
    assert torch.equal(compiled(f, fullgraph=False)(x), f(x))


# What torch's operator computes under torch.compile, too, and what it refuses.

TORCHS = {
    "empty": lambda library, x: library.layer_norm(x[:0], (4,)),
    "gradient transform": lambda library, x: torch.func.grad(
        lambda x: library.layer_norm(x, (4,)).square().sum()
    )(x),
    "vmap": lambda library, x: torch.func.vmap(lambda x: library.rms_norm(x, (4,)))(x),
    "jvp": lambda library, x: torch.func.jvp(lambda x: library.layer_norm(x, (4,)), (x,), (x,))[1],
    "parameters of another dtype": lambda library, x: library.rms_norm(
        x, (4,), torch.ones(4, dtype=torch.float64, device=x.device)
    ),
    "channels_last rows": lambda library, x: library.rms_norm(
        x.view(2, 3, 2, 2).contiguous(memory_format=torch.channels_last), (2,)
    ),
}


# torch's own decompositions for forward-mode differentiation
@pytest.mark.filterwarnings("ignore:`torch.jit.")
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and:UserWarning")
@pytest.mark.parametrize("f", TORCHS.values(), ids=TORCHS)
def test_torchs_operator_is_traced(device, launches, f):
    x = torch.randn(6, 4, device=device)
    torch._dynamo.reset()
    ours, theirs = (compiled(lambda x, lib=lib: f(lib, x), "eager")(x) for lib in (normreg.functional, F))
    assert torch.equal(ours, theirs)
    assert launches == []


def test_lazily_negated_tensors(device, launches):
    x = torch.randn(6, 4, device=device)
    y = compiled(lambda x: normreg.functional.layer_norm(x, (4,)))(torch._neg_view(x))
    assert torch.equal(y, normreg.functional.layer_norm(-x, (4,)))
    assert len(launches) == 2


def test_a_listener_neither_hears_nor_breaks_a_graph(device, launches):
    x, heard = torch.randn(6, 4, device=device), []
    call = compiled(lambda x: normreg.functional.layer_norm(x, (4,)))
    with dispatch.watched(lambda *decision: heard.append(decision)):
        y = call(x)
        assert heard == []
    assert torch.equal(call(x), y)
    assert torch.equal(normreg.functional.layer_norm(x, (4,)), y)
    assert len(launches) == 3


def test_a_leaf_is_not_changed_in_place(device):
    x = torch.ones(4, device=device, requires_grad=True)
    with pytest.raises(Exception, match="a leaf Variable that requires grad"):
        compiled(lambda x: normreg.functional.dropout(x, 0.5, inplace=True))(x)
    assert torch.equal(x, torch.ones_like(x))


# compiled autograd looks for a gradient on every tensor
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_autograd(device, launches):
    """The backward of a model that ran eagerly, with other seeds each time, in at most two graphs."""
    model = layers(device)
    counter = CompileCounterWithBackend("aot_eager")
    for _ in range(3):
        x = torch.randn(6, 4, device=device, requires_grad=True)
        y = model(x)
        (expected,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
        launches.clear()
        with torch._dynamo.compiled_autograd._enable(lambda graph: compiled(graph, counter)):
            y.square().sum().backward(inputs=[x])
        assert torch.equal(x.grad, expected)
        assert len(launches) == 1 + 2 + 2 + 1
    assert counter.frame_count <= 2
