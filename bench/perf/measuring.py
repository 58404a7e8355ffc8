"""One peer on one case: the agreement with float64 first, then memory and time. Runs in a worker.

Nothing is timed that does not agree with torch's layer in float64, whose results serve all peers of a case.
"""

import copy
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton

from bench.operations import OPERATIONS
from bench.operations.case import float64_results, largest_error
from bench.perf import timing, worker


@dataclass
class Contestant:
    """A peer's layer on a case, and tensors for it to take turns on."""

    call: Callable  # function of x
    layer: torch.nn.Module  # whose parameters and buffers it uses
    inputs: list  # of (x, dy)

    def forward(self, index):
        return self.call(self.inputs[index][0])

    def backward(self, index, y):
        x, dy = self.inputs[index]
        return torch.autograd.grad(y, (x, *self.layer.parameters()), dy, retain_graph=True)

    def first_call(self, forward_only):
        """y and the gradients. Compiles."""
        x, dy = self.inputs[0]
        y = self.call(x)
        wanted = (x, *self.layer.parameters())
        return y.detach(), () if forward_only else torch.autograd.grad(y, wanted, dy)

    def calls(self, direction):
        """Calls without arguments, one for each pair of tensors, to be made on one stream."""
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
    """(x, dy) pairs. No element is 0, so that a dropped one can be told."""

    def tensor():
        drawn = case.like_input(torch.randn, device)
        return drawn.masked_fill_(drawn == 0, 1)

    return [(tensor().requires_grad_(), tensor()) for _ in range(count)]


def draw_layer(case, device):
    """torch's layer, with parameters that are not the neutral ones.

    BatchNorm's are of float32 whatever the input's dtype, as mixed precision has them: only then does torch
    take cuDNN's kernels for float16.
    """
    layer = OPERATIONS[case.operation].layer(torch.nn, case, device=device, dtype=case.dtype)
    for module in layer.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.float()
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return layer


class Subject:
    """A case with what all peers share: torch's layer, the tensors and what they give in float64."""

    def __init__(self, case, device):
        torch.manual_seed(0)
        self.case, self.operation, self.device = case, OPERATIONS[case.operation], device
        self.layer = draw_layer(case, device)

    @functools.cached_property
    def inputs(self):
        count = timing.sets(self.operation.least_bytes(self.case, "forward"))
        return draw(self.case, count, self.device)

    @functools.cached_property
    def expected(self):
        return float64_results(self.layer, *self.inputs[0])

    def error(self, contestant, y, gradients):
        """The largest relative error of the contestant's first call."""
        if self.operation.masked_error is None:
            return largest_error(self.expected, contestant.layer, y, gradients)
        x, dy = self.inputs[0]
        return self.operation.masked_error(self.layer, contestant.layer, x.detach(), dy, y, gradients)


class Compilations:
    """Kernels that Triton compiled, and graphs that torch.compile did, since the last look."""

    def __init__(self):
        self.kernels = self.seen = 0
        triton.knobs.runtime.jit_post_compile_hook = self._count

    def _count(self, *, already_compiled=False, **_):
        self.kernels += not already_compiled

    def look(self):
        total = self.kernels + torch._dynamo.utils.counters["stats"]["unique_graphs"]
        new, self.seen = total - self.seen, total
        return new


class Measurer:
    """What a worker of `bench speed` serves. Its generators yield what they found as soon as they did."""

    def __init__(self):
        self.subject, self.compilations = None, Compilations()

    def copies(self, sizes):
        """(size, samples of the bandwidth of a copy in GB/s)"""
        for size in sizes:
            yield size, timing.copy_bandwidth(size)

    def contestant(self, case, peer):
        """None where the peer does not have the operation."""
        if self.subject is None or self.subject.case != case:
            self.subject = None  # its memory is free for the next one's
            self.subject = Subject(case, timing.DEVICE)
        layer = copy.deepcopy(self.subject.layer)
        call = peer.adapt(case.operation, layer)
        return None if call is None else Contestant(call, layer, self.subject.inputs)

    def compile(self, case, peer):
        """Makes the first call, and leaves what it compiles in the caches."""
        with peer.around(case.operation), timing.side_stream():
            contestant = self.contestant(case, peer)
            if contestant is not None:
                contestant.first_call(case.operation in peer.forward_only)
        yield from ()

    def measure(self, case, peer, directions):
        """Parts of a record: nothing where the peer does not have the operation."""
        try:
            with peer.around(case.operation), timing.side_stream() as stream:
                contestant = self.contestant(case, peer)
                if contestant is not None:
                    yield from self.parts(contestant, case.operation in peer.forward_only, directions, stream)
        except ImportError as error:  # nothing was launched by what cannot be imported
            yield dict(refused=worker.first_line(error))

    def parts(self, contestant, forward_only, directions, stream):
        self.compilations.look()
        begin = time.perf_counter()
        results = contestant.first_call(forward_only)
        timing.wait()
        yield dict(first_call_s=time.perf_counter() - begin, compilations=self.compilations.look())
        error = self.subject.error(contestant, *results)
        del results
        yield dict(error=error)
        if not error <= self.subject.operation.tolerance(self.subject.case):  # nan is no agreement either
            yield dict(refused=f"differs from float64 by {error:.1e}")
            return
        backward = None if forward_only else lambda y: contestant.backward(0, y)
        kept, peak = timing.memory(lambda: contestant.forward(0), backward)
        yield dict(kept_bytes=kept, peak_bytes=peak)
        times = {}
        for direction in directions:
            if forward_only and "backward" in direction:
                continue
            times[direction] = timing.sample(contestant.calls(direction), stream)
            yield dict(times=times)
