"""The operators that torch.compile traces, called as it would for every example: `opcheck`, and more.

`torch.library.opcheck` compares neither strides nor what is kept.
"""

import contextlib

import pytest
import torch
from operations import FUNCTIONS, LAYERS, OF_RANKS
from operator_calls import assert_fakes_are_like_the_results
from operator_calls import guarded_memory as guarded_memory
from over_channels import LAST
from torch.library import opcheck

import normreg  # noqa: F401


def copied(argument):
    """A leaf with the same strides."""
    if not isinstance(argument, torch.Tensor):
        return argument
    size = sum((n - 1) * stride for n, stride in zip(argument.shape, argument.stride())) + 1
    memory = argument.detach().as_strided((size,), (1,)).clone() if argument.numel() else argument.detach()
    twin = memory.as_strided(argument.shape, argument.stride()) if argument.numel() else memory.clone()
    return twin.requires_grad_(argument.requires_grad and torch.is_grad_enabled())


def step(call, inputs, device, wanted=lambda index: True, dy=torch.randn_like, around=contextlib.nullcontext):
    """A forward and backward of the call; with `wanted` of the inputs."""
    inputs = [t.detach().requires_grad_(wanted(index)) for index, t in enumerate(inputs)]
    with around():
        y = call(*inputs)
    if y.requires_grad:
        torch.autograd.grad(y, [t for t in inputs if t.requires_grad], dy(y))


def beside_float32(inputs):
    """x and residuals of bfloat16."""
    return [t.bfloat16() if t.shape == inputs[0].shape else t for t in inputs]


def channels_last(inputs):
    return [t.contiguous(memory_format=LAST[t.dim()]) if t.dim() in LAST else t for t in inputs]


def expanded(y):
    return torch.randn((), dtype=y.dtype, device=y.device).expand(y.shape)


# what `step` is given, of inputs in float32
VARIANTS = {
    "of float32": lambda inputs: dict(inputs=inputs),
    "of float64": lambda inputs: dict(inputs=[t.double() for t in inputs]),
    "of bfloat16 beside float32": lambda inputs: dict(inputs=beside_float32(inputs)),
    "of bfloat16, channels_last": lambda inputs: dict(inputs=channels_last([t.bfloat16() for t in inputs])),
    "to float32 by autocast, channels_last": lambda inputs: dict(
        inputs=channels_last(beside_float32(inputs)),
        around=lambda: torch.autocast(inputs[0].device.type, torch.bfloat16),
    ),
    "without gradients": lambda inputs: dict(inputs=inputs, around=torch.no_grad),
    "for dx alone, of an expanded dy": lambda inputs: dict(
        inputs=channels_last(inputs), wanted=lambda index: index == 0, dy=expanded
    ),
    "for parameters alone": lambda inputs: dict(inputs=inputs, wanted=lambda index: index > 0),
}


def calls_of(kind, variant, device, monkeypatch):
    """The distinct calls of operators in a step of an example."""
    if kind in FUNCTIONS:
        example = FUNCTIONS[kind]
        inputs, call = example.inputs(device), example.seeded
    else:
        layer = LAYERS[kind].make().to(device).train(variant != "without gradients")
        inputs, call = [torch.randn(5, *LAYERS[kind].sample, device=device)], layer
    calls, call_operator = [], torch._ops.OpOverload.__call__

    def recorded(operator, *arguments, **options):
        if operator.namespace == "normreg" and not options:  # draw_seed takes some
            calls.append((operator, [copied(a) for a in arguments]))
        return call_operator(operator, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(torch._ops.OpOverload, "__call__", recorded)
        patched.setattr(torch.compiler, "is_compiling", lambda: True)
        step(call, device=device, **VARIANTS[variant](inputs))
    return calls


OF_LAYERS = ("of float32", "without gradients")  # in training and in evaluation
CASES = [(kind, variant) for kind in FUNCTIONS for variant in VARIANTS]
CASES += [(kind, variant) for kind in LAYERS for variant in OF_LAYERS]
every_case = pytest.mark.parametrize(("kind", "variant"), CASES)


@pytest.fixture
def calls(device, monkeypatch, kind, variant):
    return calls_of(kind, variant, device, monkeypatch)


def test_every_operator_is_called(device, monkeypatch):
    defined = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("normreg::")}
    telling = [(kind, "of float32") for kind in FUNCTIONS] + [(kind, "without gradients") for kind in LAYERS]
    called = {
        operator._schema.name
        for kind, variant in telling
        for operator, _ in calls_of(kind, variant, device, monkeypatch)
    }
    of_ranks = {f"normreg::{name}{end}" for name in OF_RANKS for end in ("", "_backward")}
    # examples need gradients and give a generator: test_operators.py and test_compiled_masks.py call these
    elsewhere = {"normreg::layer_norm_float8", "normreg::draw_seed"}
    assert defined == called | of_ranks | elsewhere


# torch's own look at the arguments it makes; it hides the warning, but not where warnings are errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.some(10)
@every_case
def test_opcheck(calls, kind, variant):
    for operator, arguments in calls:
        opcheck(operator, arguments)


@pytest.mark.some(40)
@every_case
def test_no_buffer_is_saved(calls, kind, variant):
    """What is kept are arguments that stay as they are, and results; the next batch changes a buffer."""
    saved = []
    for operator, arguments in calls:
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            results = operator(*arguments)
        names = [argument.name for argument in operator._schema.arguments]
        stay = [a for a, name in zip(arguments, names) if not name.startswith("running_")]
        known = [*stay, *(results if isinstance(results, tuple) else (results,))]
        pointers = {t.data_ptr() for t in known if isinstance(t, torch.Tensor)}
        assert {t.data_ptr() for t in saved} <= pointers, operator


@pytest.mark.some(40)
@every_case
def test_fakes_are_like_the_results(calls, kind, variant):
    for operator, arguments in calls:
        assert_fakes_are_like_the_results(operator, arguments)
