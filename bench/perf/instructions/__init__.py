"""Instructions that compiled kernels execute by class, sectors of memory, passes over shared memory.

Each case runs once forward and once backward on code compiled for a GPU, which is executed in host memory
with the grids of an H100; a record is a launch. Counts are kept only where results agree with float64.
`moved_bytes` are loaded and stored. `sectors` are the pieces of 32 bytes that each instruction of a warp
touches; 32 times their number is `moved_bytes` where all that memory moves is used, and less where lanes
share an address. `dram_bytes` counts every byte of a tensor of up to 1 MiB once, because it stays in the
cache, and one of a larger tensor at every instruction of a program, once for all its threads. Times that are
derived from the counts are a model's.
"""

import contextlib
import copy
import functools

import torch

from bench import lab
from bench.harness import worker
from bench.harness.budget import in_processes
from bench.lab import without_gpu
from bench.lab.driver import HostDriver, activate
from bench.operations import OPERATIONS, cases
from bench.perf.contest import Contestant, Subject
from bench.perf.instructions.gpu_model import H100, terms
from bench.perf.instructions.tables import ABSENT, CLASSES, table
from bench.perf.peers import OURS, PEERS

__all__ = ["CAPTION", "OPERATIONS", "add_arguments", "run", "status", "table"]

ARCHITECTURES = (80, 90, 100)
MODELS = {90: H100}  # by architecture; for others there are only counts
# With fewer rows, a peer that has partial gradients for every multiprocessor moves little else
ROWS_FOR_PEERS = 8 * H100.multiprocessors
OF_TRITON = {peer.name: peer for peer in PEERS if peer.triton}


@functools.cache  # Triton compiles for the first driver that a kernel meets
def machine(arch):
    """The driver of this process, which executes a GPU's code in host memory."""
    host = HostDriver(arch, H100.multiprocessors)
    activate(host)
    return host


def described(executed, host):
    """A record of a launch: its counts and the terms of the model."""
    count, gpu = executed.count, MODELS.get(host.arch)
    return dict(
        kernel=executed.kernel,
        arch=f"sm_{host.arch}",
        grid=list(executed.grid),
        threads=executed.threads,
        dram_bytes=executed.dram_bytes,
        moved_bytes=count.get("global load bytes", 0) + count.get("global store bytes", 0),
        sectors=count.get("global load sectors", 0) + count.get("global store sectors", 0),
        shared_requests=count.get("shared requests", 0),
        shared_wavefronts=count.get("shared wavefronts", 0),
        warp_instructions={name: executed.by_class[name] for name in CLASSES if executed.by_class.get(name)},
        model=gpu and terms(gpu, executed.dram_bytes, executed.by_class),
    )


def execute(subject, peer, host):
    """Returns ({direction: launches}, largest error), or None where the peer lacks the operation."""
    operation, layer = subject.case.operation, copy.deepcopy(subject.layer)
    with contextlib.ExitStack() as stack:
        stack.enter_context(without_gpu.as_on_a_gpu())
        stack.enter_context(without_gpu.seen_by_peers(peer.package))
        if (call := peer.adapt(operation, layer)) is None:
            return None
        stack.enter_context(peer.around(operation))
        contestant = Contestant(call, layer, subject.inputs)
        with lab.counted(host) as forward:
            y = contestant.forward(0)
        with lab.counted(host) as backward:
            gradients = contestant.backward(0, y)
    return dict(forward=forward, backward=backward), subject.error(contestant, y.detach(), gradients)


def refusal(peer, tolerance, launches, error):
    """The reason not to count a peer's launches, or None."""
    if not all(launches.values()):
        return f"expected kernels of Triton's in both directions, {peer.name} launched none"
    if not error <= tolerance:  # nan is no agreement either
        return f"differs from float64 by {error:.1e}"


def measure(subject, peer, host):
    """Yields a record for each launch, or one with the reason why there is none."""
    case = subject.case
    shared = dict(operation=case.operation, case=str(case), peer=peer.name, version=peer.version())
    try:
        if (executed := execute(subject, peer, host)) is None:
            return
    except Exception as error:
        if peer.name == OURS:
            raise
        missing = isinstance(error, ImportError) and not peer.installed()
        yield shared | dict(refused=ABSENT if missing else worker.first_line(error))
        return
    launches, error = executed
    if why := refusal(peer, subject.operation.tolerance(case), launches, error):
        yield shared | dict(refused=why)
        return
    shared |= dict(elements=subject.inputs[0][0].numel(), error=error)
    for direction, of_direction in launches.items():
        for number, one in enumerate(of_direction):
            yield shared | dict(direction=direction, launch=number) | described(one, host)


def add_arguments(parser):
    parser.add_argument(
        "--arch",
        type=int,
        choices=ARCHITECTURES,
        default=90,
        help="compile for sm_80, sm_90 or sm_100 (default: 90)",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=OF_TRITON,
        metavar="NAME",
        help=f"count kernels of these libraries, too, or of all: {', '.join(OF_TRITON)} (default: ours)",
    )


def measure_case(case, peers, arch):
    torch.set_num_threads(1)
    host, subject = machine(arch), Subject(case, "cpu")
    if len(case.shape) == 2 and case.shape[0] < ROWS_FOR_PEERS:
        peers = peers[:1]
    return [record for peer in peers for record in measure(subject, peer, host)]


def run(arguments, budget):
    peers = [PEERS[0]]
    if arguments.peers is not None:
        peers += [OF_TRITON[name] for name in arguments.peers or OF_TRITON]
    chosen = cases("instructions", arguments.operations)
    for records in in_processes(budget, chosen, measure_case, peers, arguments.arch):
        yield from records


def status(records):
    return int(any(record["peer"] == OURS and "refused" in record for record in records))


CAPTION = (
    "dynamic lane instructions an element by class, counted while compiled code ran in host memory; "
    f"microseconds on an {H100.name} are a model, not a measurement, with room for {H100.room():.1f} "
    "instructions a byte"
)
