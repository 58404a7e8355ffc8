"""Device and end-to-end time of every layer, against torch and every installed peer. Needs a GPU.

Device time is that of CUDA graphs with a cold L2 cache; end-to-end time includes the host. Nothing is timed
that does not first agree with torch's layer in float64. Speed-up is over the best of the others, for each
direction; a number below 1 is a loss.

Measurements run in a process that is replaced once one fails, so that none spoils the next. --quick measures
the cases that decide, forward and backward: normreg and torch eager on all of them, then the others, case by
case. It compiles ahead, on all cores.
"""

import contextlib
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from unittest import mock

from bench.harness import side_by_side, tables
from bench.harness.worker import Failed, Late, Worker
from bench.operations import OPERATIONS, cases
from bench.operations.case import Case
from bench.operations.quick import DIRECTIONS, QUICK
from bench.perf.peers import OURS, PEERS
from bench.perf.speed import compare, estimate
from bench.perf.speed.measuring import Measurer

COPIED_BYTES = tuple(2**power for power in range(14, 31, 2))
COPIED_BYTES_QUICK = (2**28, 2**30)
SILENCE_S, SILENCE_QUICK_S = 300, 30  # a step of a measurement that takes longer hangs
QUICK_S = 64  # of 75 in all, with imports before and files after
AHEAD_PART = 0.4  # share of it to compile in
MOST_PROCESSES = 14  # that compile; each has tensors on the GPU, and a context of half a GiB
FIRST = (OURS, "torch eager")


@dataclass(frozen=True)
class Turn:
    """A case and the peers that are measured on it, begun only where there is time for all of them."""

    case: Case
    peers: tuple
    directions: tuple
    name: str

    def __str__(self):
        return self.name


def turns_of(chosen, peers):
    """A turn for each case."""
    return [Turn(case, tuple(peers), tuple(OPERATIONS[case.operation].passes), str(case)) for case in chosen]


def quick_turns_of(chosen, peers):
    """A turn of normreg and torch eager for each case, then one for each case and other peer."""
    first = tuple(peer for peer in peers if peer.name in FIRST)
    groups = [(case, first) for case in chosen]
    groups += [(case, (peer,)) for case in chosen for peer in peers if peer not in first]
    return [
        Turn(case, group, DIRECTIONS, f"{case} ({', '.join(peer.name for peer in group)})")
        for case, group in groups
    ]


def chosen_cases(arguments):
    part, parts = map(int, arguments.shard.split("/"))
    if not arguments.quick:
        return cases("speed", arguments.operations)[part - 1 :: parts]
    wanted = arguments.operations or OPERATIONS
    return [case for case in QUICK if case.operation in wanted][part - 1 :: parts]


@contextlib.contextmanager
def empty_caches():
    """Makes first calls compile, whatever ran before."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        caches = {name: f"{folder}/{name}" for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
        with mock.patch.dict(os.environ, caches):
            yield


def one_compiling_thread():
    """Lets torch.compile start no processes, because several workers compile, each a few kernels."""
    return mock.patch.dict(os.environ, TORCHINDUCTOR_COMPILE_THREADS="1")


def compile_ahead(turns, seconds):
    """Fills the caches with compiled kernels, as far as the time allows."""
    calls = [
        ("compile", turn.case, peer) for turn in turns for peer in turn.peers if peer.name != "torch eager"
    ]
    processes = min(len(calls), MOST_PROCESSES, len(os.sched_getaffinity(0)))
    side_by_side.together(Measurer, calls, processes=max(1, processes), seconds=seconds)


def measure(measurer, case, peer, directions, silence, budget):
    """The record of a peer on a case, or None where the peer lacks the operation or there is no time."""
    operation = OPERATIONS[case.operation]
    least_bytes = {direction: operation.least_bytes(case, direction) for direction in directions}
    record = dict(operation=case.operation, case=str(case), origin=case.origin, least_bytes=least_bytes)
    record |= dict(peer=peer.name, version=peer.version(), times={})
    answered, limit = False, min(silence, max(budget.left(), 0))
    try:
        for part in measurer.call("measure", case, peer, directions, limit=limit):
            record, answered = record | part, True
    except Failed as failure:
        if isinstance(failure, Late) and budget.left() <= 0:
            budget.left_out.append(f"{case} ({peer.name})")
            return record if record["times"] else None
        return record | dict(refused=str(failure))  # a peer's fault is a result, not the end of the run
    return record if answered else None


def add_arguments(parser):
    parser.add_argument(
        "--shard",
        default="1/1",
        metavar="I/N",
        help="measure the I-th of N shares of the cases (default: 1/1)",
    )
    parser.add_argument(
        "--peers", nargs="+", metavar="NAME", help="measure only these, and normreg (default: all installed)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"only the cases that decide, within {QUICK_S} seconds or the budget",
    )


def run(arguments, budget):
    wanted = {OURS, *(arguments.peers or (peer.name for peer in PEERS))}
    peers = [peer for peer in PEERS if peer.name in wanted and peer.installed()]
    if arguments.quick and arguments.budget is None:
        budget.end_in(QUICK_S)
    surroundings = one_compiling_thread if arguments.quick else empty_caches
    with surroundings(), Worker(Measurer) as measurer:
        yield from measure_all(arguments, budget, measurer, peers)


def measure_all(arguments, budget, measurer, peers):
    silence = SILENCE_QUICK_S if arguments.quick else SILENCE_S
    chosen = chosen_cases(arguments)
    turns = (quick_turns_of if arguments.quick else turns_of)(chosen, peers)
    if arguments.quick:
        measurer.start()  # it imports while others compile
        compile_ahead(turns, seconds=AHEAD_PART * max(0, budget.left()))

    copied = {}
    sizes = COPIED_BYTES_QUICK if arguments.quick else COPIED_BYTES
    for size, samples in measurer.call("copies", sizes, limit=silence):
        copied[size] = statistics.median(samples)
        yield dict(operation="copy", case=f"copy of {size} bytes", bytes=2 * size, gb_per_s=samples)
    copy_gb_per_s = max(copied.values())
    print(expectation(peers, copy_gb_per_s), file=sys.stderr)

    for turn in budget.within(turns, ended=arguments.quick):
        for peer in turn.peers:
            record = measure(measurer, turn.case, peer, turn.directions, silence, budget)
            if record is not None:
                yield record | dict(copy_gb_per_s=copy_gb_per_s, compiled_ahead=arguments.quick)


def expectation(peers, copy_gb_per_s):
    """A sentence with the time that a full run is expected to take."""
    turns = turns_of(cases("speed"), peers)
    parts = (estimate.seconds(turn.case, turn.peers, turn.directions, copy_gb_per_s) for turn in turns)
    return (
        f"a full run has {len(turns)} cases for {len(peers)} peers: about {sum(parts) / 60:.0f} min, "
        "estimated from bytes and assumed seconds of compiling"
    )


def table(records):
    return tables.text(compare.HEADERS, compare.rows(records), grouped=1)


CAPTION = "measured; device time with a cold L2 cache; speed-up over the best of the others"
