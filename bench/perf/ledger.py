"""Bytes and launches of every operation, counted while compiled code runs: exact, and without a GPU.

Each case runs once forward and once backward on code compiled for sm_90, with the tiles and grids of an H100:
where programs leave partial results, there are as many as its 132 multiprocessors make. `moved` are all bytes
that kernels and torch's operators load and store; `least` those that any implementation moves: each tensor of
the input's size once. An instruction counts a byte once, however many threads share it. A tensor of up to
1 MiB (parameters, statistics, few partial results) counts once a launch, because it stays in the cache. A
larger one counts at every access but those that come shortly after another: of the same program, or one that
runs beside it, and at most 194 KiB later, a multiprocessor's share of half the 50 MiB of an H100's cache.
"""

import contextlib
import math
from unittest import mock

import torch

import normreg
from bench import lab
from bench.harness import tables
from bench.harness.budget import in_processes
from bench.lab.without_gpu import as_on_a_gpu
from bench.operations import OPERATIONS, cases
from bench.perf.instructions import machine
from bench.perf.instructions.gpu_model import H100
from bench.perf.torch_operators import Operators
from normreg.kernels.dropout.drop import seed_arguments

DIRECTIONS = ("forward", "backward")
WORDS = (
    "A case is a layer, a dtype and the input's shape. moved: bytes that kernels and torch's operators load "
    "and store, over the elements of the input; least: those that any implementation moves, each tensor of "
    "the input's size once; ratio: moved over least. A launch is a kernel, the number of its "
    "programs, or their grid, and what it moves. A tensor is small up to 1 MiB (parameters, "
    "statistics, partial results of few programs): it is taken as cached, stays in the GPU's cache, and "
    "counts once a launch."
)
ARCH = 90  # of an H100


@contextlib.contextmanager
def counted(host):
    """Collects the launches made meanwhile and the operators of torch, as (launches, operators)."""
    # a dispatch mode sends calls to torch's operators; this one only counts
    unseen = mock.patch.object(torch._C, "_len_torch_dispatch_stack", return_value=0)
    with as_on_a_gpu(), lab.counted(host) as launches, Operators() as operators, unseen:
        yield launches, operators.moved


def measure(case, host):
    """Yields a record for each direction of a case."""
    operation = OPERATIONS[case.operation]
    layer = operation.layer(normreg, case, dtype=case.dtype)
    x = case.like_input(torch.randn, "cpu").requires_grad_()
    dy = case.like_output(torch.randn, "cpu")
    wanted = (x, *layer.parameters())
    seed_arguments(0, x.device)  # allocates once for a device, which is not part of a call
    with counted(host) as forward:
        y = layer(x)
    yield record(operation, case, "forward", *forward)
    with counted(host) as backward:
        torch.autograd.grad(y, wanted, dy)
    yield record(operation, case, "backward", *backward)


def record(operation, case, direction, launches, operators):
    return dict(
        operation=case.operation,
        case=str(case),
        direction=direction,
        elements=math.prod(case.shape),
        multiprocessors=H100.multiprocessors,
        launches=[
            dict(kernel=launch.kernel, grid=list(launch.grid), bytes=launch.dram_bytes) for launch in launches
        ],
        torch_operators=[dict(name=name, bytes=moved) for name, moved in operators],
        moved_bytes=sum(one.dram_bytes for one in launches) + sum(moved for _, moved in operators),
        least_bytes=operation.least_bytes(case, direction),
    )


def add_arguments(parser):
    pass


def measure_case(case):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return list(measure(case, machine(ARCH)))


def run(arguments, budget):
    for records in in_processes(budget, cases("ledger", arguments.operations), measure_case):
        yield from records


def per_element(record, bytes):
    return f"{bytes / record['elements']:.2f}"


def described(record):
    """Every launch as "kernel grid: bytes an element"."""
    told = []
    for launch in record["launches"]:
        grid = launch["grid"]
        while len(grid) > 1 and grid[-1] == 1:
            grid = grid[:-1]
        name = launch["kernel"].removesuffix("_kernel")
        told.append(f"{name} {'x'.join(map(str, grid))}: {per_element(record, launch['bytes'])}")
    told += [f"{one['name']}: {per_element(record, one['bytes'])}" for one in record["torch_operators"]]
    return ", ".join(told)


def table(records):
    headers = "case | direction | moved | least | ratio | launches: programs, moved"
    rows = [
        (
            record["case"],
            record["direction"],
            per_element(record, record["moved_bytes"]),
            per_element(record, record["least_bytes"]),
            f"{record['moved_bytes'] / record['least_bytes']:.2f}",
            described(record),
        )
        for record in sorted(records, key=lambda record: record["case"])
    ]
    return tables.explained(tables.text(headers, rows, grouped=1), WORDS)


CAPTION = (
    f"bytes an element, exact: code compiled for sm_{ARCH} runs with the grids of an {H100.name}, which has "
    f"{H100.multiprocessors} multiprocessors, and partial results are included; a tensor of up to 1 MiB "
    "counts once a launch, a larger one at every access that does not shortly follow another"
)
