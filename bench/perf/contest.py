"""A case as a contest: the layer and tensors that all peers share, and one peer's calls on them.

Results count only where they agree with torch's layer in float64, which is computed once for all peers.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.operations import OPERATIONS
from bench.operations.case import float64_results, largest_error


@dataclass
class Contestant:
    """A peer's layer on a case, and the tensors that it takes turns on."""

    call: Callable  # function of x
    layer: torch.nn.Module  # whose parameters and buffers it uses
    inputs: list  # (x, dy) each

    def forward(self, index):
        return self.call(self.inputs[index][0])

    def backward(self, index, y):
        x, dy = self.inputs[index]
        return torch.autograd.grad(y, (x, *self.layer.parameters()), dy, retain_graph=True)

    def first_call(self, forward_only):
        """y and the gradients of a call that compiles."""
        x, dy = self.inputs[0]
        y = self.call(x)
        wanted = (x, *self.layer.parameters())
        return y.detach(), () if forward_only else torch.autograd.grad(y, wanted, dy)

    def calls(self, direction):
        """Functions without arguments, one for each pair of tensors, to be called on one stream."""
        indices = range(len(self.inputs))
        if direction == "forward":
            return [lambda i=i: self.forward(i) for i in indices]
        if direction == "backward":
            outputs = [self.forward(i) for i in indices]
            return [lambda i=i, y=y: self.backward(i, y) for i, y in enumerate(outputs)]
        if direction == "forward+backward":
            return [lambda i=i: self.backward(i, self.forward(i)) for i in indices]
        self.layer.eval()
        return [lambda i=i: self.without_gradients(i) for i in indices]

    def without_gradients(self, index):
        with torch.no_grad():
            return self.forward(index)


def draw(case, count, device):
    """Draws pairs (x, dy) without zeros, so that a 0 in the result is a dropped element."""

    def without_zeros(drawn):
        return drawn.masked_fill_(drawn == 0, 1)

    return [
        (
            without_zeros(case.like_input(torch.randn, device)).requires_grad_(),
            without_zeros(case.like_output(torch.randn, device)),
        )
        for _ in range(count)
    ]


def draw_layer(case, device):
    """Draws torch's layer, with parameters that are not ones and zeros.

    BatchNorm's are float32 whatever the input's dtype, as in mixed precision: only then does torch take
    cuDNN's kernels for float16.
    """
    layer = OPERATIONS[case.operation].layer(torch.nn, case, device=device, dtype=case.dtype)
    for module in layer.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.float()
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return layer


class Subject:
    """What all peers of a case share: torch's layer, tensors, and what the first of them give in float64."""

    def __init__(self, case, device, sets=1):
        torch.manual_seed(0)
        self.case, self.operation = case, OPERATIONS[case.operation]
        self.layer = draw_layer(case, device)
        self.inputs = draw(case, sets, device)

    @functools.cached_property
    def expected(self):
        return float64_results(self.layer, *self.inputs[0])

    def error(self, contestant, y, gradients):
        """The largest relative error of the contestant's first call."""
        if self.operation.masked_error is None:
            return largest_error(self.expected, contestant.layer, y, gradients)
        x, dy = self.inputs[0]
        return self.operation.masked_error(self.layer, contestant.layer, x.detach(), dy, y, gradients)
