"""Masks of compiled dropouts: both directions have one, whatever partitioners and checkpoints compute again.

The backward is given the seed that the forward drew. Backwards of torch's own dropouts draw again under
`activation_memory_budget`: pytorch#190717.
"""

import functools

import graphs
import pytest
import torch
from compiling import OF_INDUCTOR, compiled
from compiling import compiled_afresh as compiled_afresh
from compiling import guarded_memory as guarded_memory
from compiling import inductor_afresh as inductor_afresh
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._functorch import config
from torch._functorch.partitioners import default_partition, min_cut_rematerialization_partition
from torch.library import opcheck
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import normreg
from normreg import functional
from normreg.ops import seed

MIN_CUT = min_cut_rematerialization_partition


class Recorder:
    """A backend that runs graphs as they are, and keeps them: the backward's is the last."""

    def __init__(self, partition=MIN_CUT):
        self.graphs, self.partition = [], partition

    def keep(self, graph, inputs):
        self.graphs.append(graph)
        return make_boxed_func(graph.forward)

    def __call__(self, graph, inputs):
        return aot_autograd(fw_compiler=self.keep, partition_fn=self.partition)(graph, inputs)

    @property
    def draws(self):
        """How many seeds each graph draws, by itself or in an operator that restores a generator's state."""
        return [sum(seed.draw_seed in (n.target, *n.args) for n in g.graph.nodes) for g in self.graphs]


def plain(f, compiled):
    return compiled(f)


def inside(f, compiled, **options):
    return compiled(lambda x: checkpoint(f, x, **options))


def outside(f, compiled, **options):
    call = compiled(f)
    return lambda x: checkpoint(call, x, **options)


def region(f, compiled, budget):
    def within(x):
        with torch.autograd.graph.region_activation_memory_budget(budget):
            return f(x)

    return compiled(within)


def selective(policy):
    contexts = functools.partial(create_selective_checkpoint_contexts, lambda *_, **__: policy)
    return functools.partial(inside, use_reentrant=False, context_fn=contexts)


CHECKPOINT, REENTRANT = dict(use_reentrant=False), dict(use_reentrant=True)
# the partitioner, its budget, and how a function is compiled
WAYS = {
    "budget 1": (MIN_CUT, 1, plain),
    "budget 0.5": (MIN_CUT, 0.5, plain),
    "budget 0": (MIN_CUT, 0, plain),
    "default partitioner": (default_partition, 0, plain),
    "checkpoint": (MIN_CUT, 1, functools.partial(inside, **CHECKPOINT)),
    "checkpoint, budget 0.5": (MIN_CUT, 0.5, functools.partial(inside, **CHECKPOINT)),
    "checkpoint, default partitioner": (default_partition, 1, functools.partial(inside, **CHECKPOINT)),
    "reentrant checkpoint": (MIN_CUT, 0, functools.partial(inside, **REENTRANT)),
    "selective checkpoint": (MIN_CUT, 1, selective(CheckpointPolicy.MUST_RECOMPUTE)),
    "checkpoint of the compiled": (MIN_CUT, 0, functools.partial(outside, **CHECKPOINT)),
    "reentrant checkpoint of the compiled": (MIN_CUT, 0, functools.partial(outside, **REENTRANT)),
}
CASES = [("dropout", way) for way in WAYS]
CASES += [(name, "budget 0") for name in graphs.MASKS]


def drops(name):
    """A function of any x, of two calls with a value between that is cheap to compute again."""

    def f(x):
        y = graphs.MASKS[name](x.sin() + 2)[-1]
        return functional.dropout(y.exp(), 0.5), y

    return f


def mask(call, device):
    """What both directions keep."""
    x = graphs.input_of_masks(device)
    results = call(x)
    graphs.loss_of(results).backward()
    return graphs.kept_by(results[-1].detach(), x.grad)


@pytest.mark.parametrize(("name", "way"), dict.fromkeys(CASES))
def test_the_seed_is_saved(device, name, way):
    """pytorch#190717: no backward draws. Each call has a mask of its own."""
    partition, budget, around = WAYS[way]
    recorder = Recorder(partition)
    with config.patch(activation_memory_budget=budget):
        call = around(drops(name), functools.partial(compiled, backend=recorder))
        first, second = mask(call, device), mask(call, device)
    assert not torch.equal(first, second)
    *forward, backward = recorder.draws
    assert {*forward} == {2}
    assert backward == 0


REGIONS = pytest.mark.skipif(
    not hasattr(torch.autograd.graph, "region_activation_memory_budget"), reason="torch 2.13"
)


@REGIONS
@pytest.mark.parametrize("budget", [0.0, 0.5])
def test_the_budget_of_a_region(device, budget):
    """With 0 a region saves nothing but inputs: the seed is drawn again, from the forward's state."""
    mask(region(drops("dropout"), functools.partial(compiled, backend=Recorder()), budget), device)


def test_two_dropouts_of_one_tensor_have_two_masks(device):
    recorder = Recorder()
    x = torch.ones(4096, device=device, requires_grad=True)
    first, second = compiled(lambda x: [functional.dropout(x, 0.5) for _ in range(2)], recorder)(x)
    assert not torch.equal(first, second)
    (dx,) = torch.autograd.grad(first.sum() + 3 * second.sum(), x)
    assert torch.equal(dx, first + 3 * second)
    assert recorder.draws == [2, 0]


def test_a_checkpoint_without_gradients(device):
    call = inside(drops("dropout"), compiled, **CHECKPOINT)
    with torch.no_grad():
        dropped, _ = call(graphs.input_of_masks(device))
    assert (dropped == 0).any()


@pytest.mark.parametrize("backend", [pytest.param("inductor", marks=OF_INDUCTOR)])
def test_a_transposed_copy(device, inductor_afresh, backend):
    """pytorch#198333: four channels shared a mask, and a checkpoint's backward had another."""

    def f(x):
        return functional.dropout(x.transpose(1, 2).contiguous(), 0.5)

    x = torch.ones(2, 64, 256, device=device, requires_grad=True)
    with config.patch(activation_memory_budget=0):
        y = inside(f, functools.partial(compiled, backend=backend), **CHECKPOINT)(x)
        (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx.transpose(1, 2), y)
    assert len(dx.flatten(0, 1).unique(dim=0)) == 128


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning")  # torch's own
def test_an_exported_program_draws(device):
    """Each time anew; `seed.run` decomposes the operator."""
    x = torch.ones(4096, device=device)
    program = torch.export.export(normreg.Dropout(), (x,))
    call = program.module()
    assert not torch.equal(call(x), call(x))
    decomposed = program.run_decompositions({seed.draw_seed: seed.run})
    targets, instead = ([node.target for node in p.graph.nodes] for p in (program, decomposed))
    assert targets.count(seed.draw_seed) == instead.count(torch.ops.aten.randint.default) == 1
    assert seed.draw_seed not in instead


def test_the_operator_has_what_torch_asks_of_one(device):
    opcheck(seed.draw_seed, (), dict(device=device), test_utils=("test_schema", "test_faketensor"))
