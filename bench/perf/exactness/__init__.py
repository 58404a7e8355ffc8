"""Errors against float64, of y and of every gradient, as multiples of torch's own.

A ratio is the root mean square of our error over elements and seeds, over torch's: 1 is as exact as torch.
Each seed draws data and parameters anew; behind ± is the ratio's standard error. Data are normal numbers, as
they are, with an outlier in all that is normalised together, or with a mean; where all of it is one number,
y has to be the norm's bias, bit by bit.

Without a GPU compiled code is executed in host memory, where approximate instructions are as wrong as the PTX
manual allows, and compared with torch's operators of the CPU.
"""

import contextlib
import copy
import functools
import math
import statistics

import torch

from bench.harness.budget import in_processes
from bench.lab import interpreter, without_gpu
from bench.lab.driver import HostDriver, activate
from bench.operations import OPERATIONS, cases
from bench.operations.case import float64_results
from bench.perf.contest import draw_layer
from bench.perf.exactness.data import CONSTANT, DATA, constant
from bench.perf.exactness.tables import table
from normreg.kernels import launch

__all__ = ["CAPTION", "OPERATIONS", "add_arguments", "run", "status", "table"]

SEEDS = 6  # of float32; rounding to 16 bits is nearly all of their error, whatever the seed
SEEDS_16_BITS = 2
ARCHITECTURE = 90
DIGITS = 4


@functools.cache  # Triton compiles for the first driver that a kernel meets
def ready():
    """Makes this process ready; returns the device of the tensors, and what kernels run on."""
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        return "cuda", torch.cuda.get_device_name()
    if launch.INTERPRET:
        interpreter.speed_up()
        return "cpu", "interpreter"
    activate(HostDriver(ARCHITECTURE, without_gpu.MULTIPROCESSORS, approximate=0))
    return "cpu", f"compiled for sm_{ARCHITECTURE}"


def results(layer, x, dy):
    """y and the gradients of x and the parameters."""
    x = x.detach().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), dy)]


def ours(operation, layer, *tensors):
    """Results of normreg's layer with the parameters of torch's."""
    with contextlib.nullcontext() if tensors[0].is_cuda else without_gpu.as_on_a_gpu():
        return results(operation.fuse(copy.deepcopy(layer)), *tensors)


def names_of(layer):
    """Names of the results: y, dx, dweight ..."""
    return ["y", "dx", *(f"d{name.split('.')[-1]}" for name, _ in layer.named_parameters())]


def squared_error(result, exact):
    return (result.double() - exact).square().mean().item()


def draw(operation, case, data, seed, device):
    """(torch's layer, x, dy), drawn on the CPU, so that they are the same everywhere."""
    torch.manual_seed(seed)
    layer = draw_layer(case, "cpu")
    x, dy = data.draw(case, operation.together), case.like_output(torch.randn, "cpu")
    return layer.to(device), x.to(device), dy.to(device)


def squared_errors(operation, case, data, seeds, device):
    """{name: [(ours, torch's) for each seed]}"""
    found = {}
    for seed in range(seeds):
        layer, *tensors = draw(operation, case, data, seed, device)
        y, gradients, _ = float64_results(layer, *tensors)
        triples = zip(
            names_of(layer), ours(operation, layer, *tensors), results(layer, *tensors), (y, *gradients)
        )
        for name, *both, exact in triples:
            found.setdefault(name, []).append(tuple(squared_error(result, exact) for result in both))
    return found


def compared(pairs):
    """Ratio, its standard error, and torch's error, of the squared errors of all seeds."""
    found = dict(ratio=ratio(pairs), standard_error=standard_error(pairs))
    found["torch"] = math.sqrt(statistics.fmean(theirs for _, theirs in pairs))
    return {name: float(f"{value:.{DIGITS}g}") for name, value in found.items()}


def ratio(pairs):
    """The root mean square of our errors over that of torch's."""
    ours, theirs = map(sum, zip(*pairs))
    if ours == theirs:
        return 1.0  # also where neither is wrong
    return math.sqrt(ours / theirs) if theirs else math.inf


def standard_error(pairs):
    """That of the ratio, by leaving out one seed after the other (the jackknife)."""
    without = [ratio([*pairs[:i], *pairs[i + 1 :]]) for i in range(len(pairs))]
    return math.sqrt((len(pairs) - 1) * statistics.pvariance(without))


def exact_if_constant(operation, case, device):
    """Whether rows of one number give what zeros give, and these what is exact where the dtype has it."""
    torch.manual_seed(0)
    layer = draw_layer(case, "cpu")
    for name, parameter in layer.named_parameters():
        if name == "residual":
            torch.nn.init.zeros_(parameter)
    x, layer = constant(case, operation.together).to(device), layer.to(device)
    zeros, dy = torch.zeros_like(x), torch.ones_like(x)
    of_zeros = ours(operation, layer, zeros, dy)[0]
    expected = float64_results(layer, zeros, dy)[0]
    representable = expected.to(of_zeros.dtype).double() == expected
    right = of_zeros.double()[representable] == expected[representable]
    return bool(right.all()) and torch.equal(ours(operation, layer, x, dy)[0], of_zeros)


def measure_case(case, seeds):
    """Records of a case, one for each kind of data."""
    (device, on), operation = ready(), OPERATIONS[case.operation]
    shared = dict(operation=case.operation, case=str(case), on=on)
    seeds = (
        seeds if case.dtype.itemsize > 2 else max(2, seeds // 5)
    )  # rounding to 16 bits is nearly all of it
    found = []
    for name, data in DATA.items():
        if data.fits(case.dtype):
            errors = squared_errors(operation, case, data, seeds, device)
            compare = {of: compared(pairs) for of, pairs in errors.items()}
            found.append(shared | dict(data=name, seeds=seeds, results=compare))
    if "dbias" in found[0]["results"]:
        exact = exact_if_constant(operation, case, device)
        found.append(shared | dict(data=CONSTANT, exact=exact))
    return found


def add_arguments(parser):
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, metavar="N", help=f"seeds of a case in float32 (default: {SEEDS})"
    )
    parser.add_argument(
        "--interpreter",
        action="store_true",
        help="without a GPU: run kernels in Triton's interpreter (default: compiled code in host memory)",
    )


def run(arguments, budget):
    chosen = cases("exactness", arguments.operations)
    processes = 1 if ready()[0] == "cuda" else None
    for records in in_processes(budget, chosen, measure_case, arguments.seeds, processes=processes):
        yield from records


def status(records):
    """1 where constant rows do not give the bias; `tests/lab/test_exactness.py` judges ratios."""
    return int(any(record.get("exact") is False for record in records))


CAPTION = "root mean square of the error against float64, over torch's own"
