"""What compiled kernels execute: instructions by class, sectors of memory, passes over shared memory.

Each case runs once forward and once backward on code compiled for a GPU, which is executed in host memory
with the grids of an H100; a record is a launch. Its results agree with float64, or nothing of it counts.
`moved_bytes` are loaded and stored, `sectors` those of 32 bytes that each instruction of a warp touches:
their ratio is 1 where all that memory moves is wanted, and less where lanes share an address. `dram_bytes`
has every byte of tensors of up to 1 MiB once, which stay in the cache. What the counts say of time is a
model.
"""

import contextlib
import copy
import functools

import torch

from bench import lab
from bench.lab import without_gpu
from bench.lab.driver import HostDriver, activate
from bench.operations import OPERATIONS, cases
from bench.perf import worker
from bench.perf.gpu_model import H100, terms
from bench.perf.harness import in_processes
from bench.perf.instructions_table import CLASSES, table
from bench.perf.measuring import Contestant, Subject, draw
from bench.perf.peers import OURS, PEERS
from normreg.kernels import launch

__all__ = ["CAPTION", "OPERATIONS", "add_arguments", "run", "status", "table"]

ARCHITECTURES = (80, 90, 100)
MODELS = {90: H100}  # of code for another architecture only the counts
# Who has partial gradients of every multiprocessor moves little else where there are fewer rows
ROWS_FOR_PEERS = 8 * H100.multiprocessors
OF_TRITON = {peer.name: peer for peer in PEERS if peer.triton}


@functools.cache  # Triton compiles for the first driver that a kernel meets
def machine(arch):
    """The GPU that is executed in host memory, for this process."""
    host = HostDriver(arch, H100.multiprocessors)
    activate(host)
    host.reachable = launch.reached_through_tables
    return host


def described(executed, host):
    """The counts of a launch, and the model's terms."""
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
    """({direction: its launches}, largest error) of a call; None where the peer has no such operation."""
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
    """Why the counts of a peer are no such, or None."""
    if not all(launches.values()):
        return f"expected kernels of Triton's in both directions, {peer.name} launched none"
    if not error <= tolerance:  # nan is no agreement either
        return f"differs from float64 by {error:.1e}"


def measure(subject, peer, host):
    """A record a launch, or one that says why there is none."""
    case = subject.case
    shared = dict(operation=case.operation, case=str(case), peer=peer.name, version=peer.version())
    try:
        if (executed := execute(subject, peer, host)) is None:
            return
    except Exception as error:
        if peer.name == OURS:
            raise
        missing = isinstance(error, ImportError) and not peer.installed()
        yield shared | dict(refused="not installed" if missing else worker.first_line(error))
        return
    launches, error = executed
    if why := refusal(peer, subject.operation.tolerance(case), launches, error):
        yield shared | dict(refused=why)
        return
    shared |= dict(elements=subject.inputs[0][0].numel(), error=error)
    for direction, of_direction in launches.items():
        for number, one in enumerate(of_direction):
            yield shared | dict(direction=direction, launch=number) | described(one, host)


def subject_of(case):
    subject = Subject(case, "cpu")
    subject.inputs = draw(case, 1, "cpu")
    return subject


def add_arguments(parser):
    parser.add_argument("--arch", type=int, choices=ARCHITECTURES, default=90, help="compiled for sm_<arch>")
    parser.add_argument(
        "--peers", nargs="*", choices=OF_TRITON, metavar="NAME", help=f"beside ours: {', '.join(OF_TRITON)}"
    )


def measure_case(case, peers, arch):
    torch.set_num_threads(1)
    host, subject = machine(arch), subject_of(case)
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
