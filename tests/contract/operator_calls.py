"""What tests of calls of operators share."""

import contextlib

import pytest
import torch
from operations import FUNCTIONS, LAYERS
from over_channels import LAST
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.fixture(autouse=True)
def guarded_memory():
    """Not here: opcheck compares storage offsets, which are not 0 between guard bands."""


def assert_fakes_are_like_the_results(operator, arguments):
    """Without autograd between, and in what opcheck does not compare."""
    with torch.no_grad():
        real = operator(*arguments)
        with FakeTensorMode() as mode:
            faked = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
            fake = operator(*faked)
    for r, f in zip(*(t if isinstance(t, tuple) else (t,) for t in (real, fake)), strict=True):
        assert (r is None) == (f is None)
        if r is not None:
            assert (r.shape, r.stride(), r.dtype, r.device) == (f.shape, f.stride(), f.dtype, f.device)


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
EXAMPLES = [(kind, variant) for kind in FUNCTIONS for variant in VARIANTS]
EXAMPLES += [(kind, variant) for kind in LAYERS for variant in OF_LAYERS]
