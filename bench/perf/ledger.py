"""Bytes and launches of every operation, counted in Triton's interpreter: exact, and without a GPU.

Each case runs once forward and once backward with the tiles and grids of a GPU with 132 multiprocessors.
`moved` are all bytes of large tensors that kernels and torch's operators load and store; `least` are the
bytes that any implementation moves: each tensor of the input's size once. Tensors of up to 1 MiB
(parameters, statistics, partial sums) count once a launch, as `small`; what is loaded of them again comes
from the cache, and is `cached`. All are bytes per element of the input.
"""

import math
import warnings
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import normreg
from bench.harness import tables
from bench.lab import interpreter
from bench.lab.meter import CACHED_BYTES, Meter
from bench.lab.without_gpu import as_on_a_gpu
from bench.operations import OPERATIONS, cases
from normreg.kernels.dropout.drop import seed_arguments

DIRECTIONS = ("forward", "backward")


class Operators(TorchDispatchMode):
    """Notes torch's operators that move memory in `moved`, as (name, bytes)."""

    def __init__(self, meter):
        super().__init__()
        self.meter, self.moved = meter, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        schema = function._schema
        writes = schema.is_mutable or any(
            returned.alias_info is None and str(returned.type).startswith("Tensor")
            for returned in schema.returns
        )
        allocates = schema.name.startswith(("aten::empty", "aten::new_empty"))
        if writes and not allocates and not self.meter.launching:
            tensors = [t for t in (*args, *(kwargs or {}).values(), result) if isinstance(t, torch.Tensor)]
            self.moved.append((schema.name, sum(t.numel() * t.element_size() for t in tensors)))
        return result


def measure(case):
    """Yields a record for each direction of a case."""
    operation = OPERATIONS[case.operation]
    layer = operation.layer(normreg, case, dtype=case.dtype)
    x = case.like_input(torch.randn, "cpu").requires_grad_()
    dy = case.like_input(torch.randn, "cpu")
    wanted = (x, *layer.parameters())
    seed_arguments(0, x.device)  # allocates once for a device, which is not part of a call

    y = None
    for direction in DIRECTIONS:
        # a dispatch mode sends calls to torch's operators; this one only counts
        unseen = mock.patch.object(torch._C, "_len_torch_dispatch_stack", return_value=0)
        with as_on_a_gpu(), Meter() as meter, Operators(meter) as operators, unseen:
            if direction == "forward":
                y = layer(x)
            else:
                torch.autograd.grad(y, wanted, dy)
        yield record(operation, case, direction, meter.launches, operators.moved)


def record(operation, case, direction, launches, operators):
    large = sum(launch.large_bytes for launch in launches)
    large += sum(moved for _, moved in operators if moved > CACHED_BYTES)
    return dict(
        operation=case.operation,
        case=str(case),
        direction=direction,
        elements=math.prod(case.shape),
        kernels=[launch.kernel for launch in launches],
        torch_operators=[name for name, _ in operators],
        moved_bytes=large,
        least_bytes=operation.least_bytes(case, direction),
        small_bytes=sum(launch.small_bytes for launch in launches),
        cached_bytes=sum(launch.cached_bytes for launch in launches),
    )


def add_arguments(parser):
    pass


def run(arguments, budget):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    interpreter.speed_up()
    # numpy warns of nan in lanes without an element, where a GPU is silent
    warnings.filterwarnings("ignore", module="triton.runtime.interpreter")
    for case in budget.within(cases("ledger", arguments.operations)):
        yield from measure(case)


def per_element(record, name):
    return f"{record[name] / record['elements']:.2f}"


def table(records):
    headers = "case | direction | launches | torch operators | moved | least | moved / least | small | cached"
    rows = [
        (
            record["case"],
            record["direction"],
            len(record["kernels"]),
            len(record["torch_operators"]),
            per_element(record, "moved_bytes"),
            per_element(record, "least_bytes"),
            f"{record['moved_bytes'] / record['least_bytes']:.2f}",
            per_element(record, "small_bytes"),
            per_element(record, "cached_bytes"),
        )
        for record in sorted(records, key=lambda record: record["case"])
    ]
    return tables.markdown(headers, rows)


def summary(records):
    """A row for each case, with launches, bytes and least bytes of both directions.

    Launches include those of torch's operators.
    """
    by_case = {}
    for record in records:
        by_case.setdefault(record["case"], {})[record["direction"]] = record
    headers = ["case"]
    for direction in DIRECTIONS:
        headers += [f"{direction}: launches", "moved", "least"]
    rows = []
    for case, by_direction in sorted(by_case.items()):
        row = [case]
        for direction in DIRECTIONS:
            record = by_direction[direction]
            row.append(len(record["kernels"]) + len(record["torch_operators"]))
            row += [per_element(record, "moved_bytes"), per_element(record, "least_bytes")]
        rows.append(row)
    return tables.markdown(headers, rows)


CAPTION = "bytes an element; counted in the interpreter, exact"
