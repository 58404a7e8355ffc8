"""What `smoke` computes: an example of a function at a size, and the same in torch's operations."""

import torch

import normreg
from bench.operations import OURS, TORCH
from bench.operations.case import shape_of
from bench.operations.problem import Problem
from normreg.kernels import launch

SEED = 7  # of torch's generator before each call, so that every call of a case draws the same mask
P = 0.25  # exact in 16 and in 32 bits
ON_A_GPU = not launch.INTERPRET


def rows(cols):
    """Enough for several programs that share column sums; in the interpreter a few."""
    if not ON_A_GPU:
        return 3 if cols <= 1025 else 1
    return 257 if cols <= 1025 else 17


def problem(operation, smoke, make):
    """The problem of a Smoke of an operation, with tensors by `make`."""
    sizes = shape_of(smoke.shape)
    if operation.problem:
        return operation.problem(make, *sizes)
    example = operation.examples()[smoke.example or operation.name]
    shape = sizes if len(sizes) > 1 else (rows(*sizes), *sizes)
    shapes = example.shapes_for(shape, operation.over)
    inputs = [make.image(s, smoke.channels_last and s == shape) for s in shapes]
    options = (dict(p=P) if operation.random else {}) | smoke.options
    ours, theirs = getattr(OURS, example.name), getattr(TORCH, example.name)
    if options.get("p"):
        theirs = operation.under_mask(example.name, mask(example, ours, inputs, options))
    call = example.call
    return Problem(
        inputs,
        lambda *given: results(call, ours, given, options),
        lambda *given: results(call, theirs, given, options),
        draws=bool(options.get("p")),
    )


def results(call, function, inputs, options):
    """The function's results in this call, then the tensors given beside the inputs: running statistics."""
    seen = []

    def observed(*arguments, **given):
        result = function(*arguments, **given)
        beside = [
            t
            for t in (*arguments, *given.values())
            if isinstance(t, torch.Tensor) and not any(t is known for known in inputs)
        ]
        seen.extend([*(result if isinstance(result, tuple) else (result,)), *beside])
        return result

    call(observed, *inputs, **options)
    return tuple(seen)


def mask(example, function, inputs, options):
    """The mask of the call that follows `torch.manual_seed(SEED)`."""
    found = []

    def masked(*arguments, **given):
        torch.manual_seed(SEED)
        found.append(normreg.dropout_mask(function, *arguments, **given))
        return function(*arguments, **given)

    example.call(masked, *inputs, **options)
    return found[0]
