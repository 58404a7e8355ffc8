"""What a forward may do besides computing: it happens, numbers stay, and the process lives."""

import copy
import gc
import random
import warnings
import weakref

import numpy
import pytest
import torch
from forwards import (
    FORWARDS,
    LOG,
    SEEN,
    Listening,
    by_training,
    checkpointed,
    checkpointed_batch_norm,
    divided,
    function,
    of_a_list,
    packed,
    recorded,
    with_nan,
    zeros,
)
from fusible import PostNorm, Twice, assert_close, fresh_graphs, patterns, step  # noqa: F401
from torch import nn

import normreg

pytestmark = [  # Dynamo's own, as errors they would end its trace
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning"),
]


class Scripted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3


class Any(Twice):
    """A module with names that a library might want for itself."""

    plan, original, rewritten, recipe = (property(lambda self: 1.0) for _ in range(4))

    def __init__(self, forward):
        super().__init__(forward)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit.script is deprecated
            self.inner = torch.jit.script(Scripted())

    def given_nan(self, x, nan):
        return x * nan + float("nan") * 0 if nan != 3.0 else x * nan * self.plan


@pytest.fixture
def listening():
    SEEN.clear()
    handler = Listening()
    LOG.addHandler(handler)
    yield SEEN
    LOG.removeHandler(handler)


def run(model, x, capsys):
    """Results of two steps of training and one of evaluation, and effects."""
    random.seed(1)
    numpy.random.seed(1)
    results = [value for training in (True, True, False) for value in step(model.train(training), x)]
    effects, attributes = [*SEEN, capsys.readouterr().out], (model.steps, vars(model).get("last"))
    SEEN.clear()
    return results, effects, attributes


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda forward: forward.__name__)
def test_it_happens_as_before(device, launches, listening, capsys, forward):
    torch.manual_seed(7)
    model = Any(forward).double().to(device)
    twin = copy.deepcopy(model)
    normreg.replace(twin), normreg.replace(model, fuse=True)
    x = torch.randn(5, 8, device=device, dtype=torch.float64)
    results, effects, (steps, last) = run(model, x, capsys)
    expected, wanted, (steps_wanted, last_wanted) = run(twin, x, capsys)
    assert_close(results, expected)
    assert effects == wanted or forward is packed  # which counts what is saved, and fused it is less
    assert steps == steps_wanted
    assert last is last_wanted or torch.equal(last, last_wanted)
    assert launches


@pytest.mark.parametrize(
    ("forward", "last"),
    [
        *((f, "norm -> act") for f in (function, by_training, of_a_list, zeros, with_nan, divided)),
        (checkpointed, "drop -> + -> layer_norm"),
        (checkpointed_batch_norm, "norm -> act"),
    ],
)
def test_and_what_can_be_fused_is(device, forward, last):
    model = Any(forward).double().to(device)
    report = normreg.replace(model, fuse=True, example_inputs=torch.randn(5, 8, device=device).double())
    assert last in patterns(report)[-2:]


def test_a_profiler_sees_what_it_saw(device):
    model = Any(recorded).to(device)
    normreg.replace(model, fuse=True)
    x = torch.randn(5, 8, device=device)
    model(x)
    with torch.profiler.profile(acc_events=True) as profile:
        model(x)
    assert "recorded" in [event.name for event in profile.events()]
    assert [skip.reason for skip in normreg.explain(model, x).not_fused] == [
        "a part is computed in another mode, as of autocast or gradients"
    ]


def kept(model, x):
    """How many elements the backward of a call keeps, in values that are not smaller than x."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        y = model(x.clone().requires_grad_())
    y.sum().backward()
    return sum(size for size in sizes if size >= x.numel())


@pytest.mark.parametrize("forward", [checkpointed, checkpointed_batch_norm])
def test_checkpoints_save_memory_and_draw_one_mask(device, forward):
    """The recomputation has the forward's masks, or gradients would be wrong, and keeps what it kept."""
    model = Any(forward).double().to(device)
    twin = copy.deepcopy(model)
    normreg.replace(twin), normreg.replace(model, fuse=True)
    x = torch.randn(64, 8, device=device, dtype=torch.float64)
    sizes = []
    for m in (model, twin):
        step(m, x)
        sizes.append(kept(m, x))
    assert sizes[0] <= sizes[1]


class Registered(nn.Module):
    def __init_subclass__(cls, **options):
        SEEN.append(cls.__name__)
        super().__init_subclass__(**options)


def test_no_class_is_made(device, listening):
    """Registries of subclasses see nothing, and modules with other attributes stay of one class."""

    class Own(Registered):
        def __init__(self, number):
            super().__init__()
            self.norm, self.act, self.number = nn.BatchNorm1d(8), nn.ReLU(), number

        def forward(self, x):
            return self.act(self.norm(x)) * self.number

    models, x = [Own(1.0).to(device), Own(2.0).to(device)], torch.randn(5, 8, device=device)
    for model in models:
        assert patterns(normreg.replace(model, fuse=True, example_inputs=x)) == ["norm -> act"]
    assert SEEN == ["Own"]
    parameters, _ = torch.func.stack_module_state(models)
    assert {type(model) for model in models} == {Own}
    assert parameters["norm.weight"].shape == (2, 8)


def test_a_model_is_freed(device):
    model = PostNorm().to(device)
    normreg.replace(model, fuse=True)
    model(torch.randn(3, 8, device=device))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
