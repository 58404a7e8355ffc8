"""The work in a worker of `bench speed`: checks a peer on a case against float64, then times it."""

import copy
import time

import torch
import triton

from bench.harness import worker
from bench.operations import OPERATIONS
from bench.perf.contest import Contestant, Subject
from bench.perf.speed import timing


class Compilations:
    """Counts the kernels of Triton and the graphs of torch.compile that are compiled between two looks."""

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
    """The object of a worker; its generators yield each part of a record as soon as it is found."""

    def __init__(self):
        self.subject, self.compilations = None, Compilations()

    def copies(self, sizes):
        """Yields (size, samples of the bandwidth of a copy in GB/s)."""
        for size in sizes:
            yield size, timing.copy_bandwidth(size)

    def contestant(self, case, peer):
        """The peer on the case, or None where it lacks the operation."""
        if self.subject is None or self.subject.case != case:
            self.subject = None  # gives its memory back first
            least_bytes = OPERATIONS[case.operation].least_bytes(case, "forward")
            self.subject = Subject(case, timing.DEVICE, timing.sets(least_bytes))
        layer = copy.deepcopy(self.subject.layer)
        call = peer.adapt(case.operation, layer)
        return None if call is None else Contestant(call, layer, self.subject.inputs)

    def compile(self, case, peer):
        """Makes the first call, which leaves compiled kernels in the caches."""
        with peer.around(case.operation), timing.side_stream():
            contestant = self.contestant(case, peer)
            if contestant is not None:
                contestant.first_call(case.operation in peer.forward_only)
        yield from ()

    def measure(self, case, peer, directions):
        """Yields parts of a record; nothing where the peer lacks the operation."""
        try:
            with peer.around(case.operation), timing.side_stream() as stream:
                contestant = self.contestant(case, peer)
                if contestant is not None:
                    yield from self.parts(contestant, case.operation in peer.forward_only, directions, stream)
        except ImportError as error:  # what cannot be imported has launched nothing, and this process goes on
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
