"""Device and end-to-end time of every layer, against torch and every installed peer. Needs a GPU.

Device time is with a cold L2 cache, out of CUDA graphs; end-to-end time has the host's part in it. Nothing is
timed that does not first agree with torch's layer in float64. Speed-up is over the best of the others, for
each direction; a number below 1 is a loss.
"""

import contextlib
import copy
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
import triton

from . import compare, tables, timing
from .operations import OPERATIONS, cases
from .peers import OURS, PEERS

COPIED_BYTES = tuple(2**power for power in range(14, 31, 2))


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


def draw(case, count, device):
    """(x, dy) pairs. No element is 0, so that a dropped one can be told."""

    def tensor():
        drawn = case.like_input(torch.randn, device)
        return drawn.masked_fill_(drawn == 0, 1)

    return [(tensor().requires_grad_(), tensor()) for _ in range(count)]


def draw_layer(case, device):
    """torch's layer, with parameters that are not the neutral ones."""
    layer = OPERATIONS[case.operation].layer(torch.nn, case, device=device, dtype=case.dtype)
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return layer


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


@contextlib.contextmanager
def empty_caches():
    """First calls compile, whatever ran before."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: f"{folder}/{name}" for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
        with mock.patch.dict(os.environ, caches):
            yield


def first_call(contestant, forward_only):
    """y and the gradients. Compiles."""
    x, dy = contestant.inputs[0]
    y = contestant.call(x)
    wanted = (x, *contestant.layer.parameters())
    return y.detach(), () if forward_only else torch.autograd.grad(y, wanted, dy)


def error_of(operation, reference, contestant, y, gradients):
    """The largest relative error of the contestant's first call, against float64."""
    x, dy = contestant.inputs[0]
    return operation.error(reference, contestant.layer, x.detach(), dy, y, gradients)


def directions(contestant, forward_only):
    """{direction: calls without arguments}, to be made on one stream."""
    indices = range(len(contestant.inputs))
    found = {"forward": [lambda i=i: contestant.forward(i) for i in indices]}
    if not forward_only:
        outputs = [contestant.forward(i) for i in indices]
        found["backward"] = [lambda i=i, y=y: contestant.backward(i, y) for i, y in enumerate(outputs)]
        found["forward+backward"] = [
            lambda i=i: contestant.backward(i, contestant.forward(i)) for i in indices
        ]
    return found


def evaluation(contestant):
    """Calls in evaluation mode, without gradients."""

    def call(index):
        with torch.no_grad():
            return contestant.forward(index)

    return [lambda i=i: call(i) for i in range(len(contestant.inputs))]


def measure(case, peer, reference, inputs, compilations):
    """The record of one peer on one case, or None where it does not have the operation."""
    operation = OPERATIONS[case.operation]
    least_bytes = {direction: operation.least_bytes(case, direction) for direction in operation.passes}
    record = dict(operation=case.operation, case=str(case), origin=case.origin, least_bytes=least_bytes)
    record |= dict(peer=peer.name, version=peer.version(), times={})
    layer, forward_only = copy.deepcopy(reference), case.operation in peer.forward_only
    try:
        with peer.around(case.operation), timing.side_stream() as stream:
            call = peer.adapt(case.operation, layer)
            if call is None:
                return None
            contestant = Contestant(call, layer, inputs)
            compilations.look()
            begin = time.perf_counter()
            results = first_call(contestant, forward_only)
            timing.wait()
            record |= dict(first_call_s=time.perf_counter() - begin, compilations=compilations.look())
            record["error"] = error_of(operation, reference, contestant, *results)
            del results
            if not record["error"] <= operation.tolerance(case):  # nan is no agreement either
                record["refused"] = f"differs from float64 by {record['error']:.1e}"
                return record
            time_all(record, operation, contestant, forward_only, stream)
    except Exception as error:  # a peer's fault is a result, not the end of the run
        record["refused"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return record


def time_all(record, operation, contestant, forward_only, stream):
    backward = None if forward_only else lambda y: contestant.backward(0, y)
    record["kept_bytes"], record["peak_bytes"] = timing.memory(lambda: contestant.forward(0), backward)
    for direction, calls in directions(contestant, forward_only).items():
        record["times"][direction] = timing.sample(calls, stream)
    if "evaluation" in operation.passes:
        contestant.layer.eval()
        record["times"]["evaluation"] = timing.sample(evaluation(contestant), stream)


def add_arguments(parser):
    parser.add_argument(
        "--shard", default="1/1", metavar="I/N", help="the I-th of N runs that share the cases"
    )
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="only these, and normreg")


def run(arguments, budget):
    torch.manual_seed(0)
    with empty_caches():
        yield from measure_all(arguments, budget)


def measure_all(arguments, budget):
    compilations = Compilations()
    wanted = {OURS, *(arguments.peers or (peer.name for peer in PEERS))}
    peers = [peer for peer in PEERS if peer.name in wanted and peer.installed()]
    copied = {size: timing.copy_bandwidth(size) for size in COPIED_BYTES}
    for size, samples in copied.items():
        yield dict(operation="copy", case=f"copy of {size} bytes", bytes=2 * size, gb_per_s=samples)
    copy_gb_per_s = max(timing.median(samples) for samples in copied.values())

    part, parts = map(int, arguments.shard.split("/"))
    for case in budget.within(cases("speed", arguments.operations)[part - 1 :: parts]):
        count = timing.sets(OPERATIONS[case.operation].least_bytes(case, "forward"))
        reference, inputs = draw_layer(case, timing.DEVICE), draw(case, count, timing.DEVICE)
        for peer in peers:
            record = measure(case, peer, reference, inputs, compilations)
            if record is not None:
                yield record | dict(copy_gb_per_s=copy_gb_per_s)


def table(records):
    return tables.markdown(compare.HEADERS, compare.rows(records))


CAPTION = "measured; device time with a cold L2 cache; speed-up over the best of the others"
