"""The time that Python takes from a layer's call to the launch of its kernels. Needs no GPU.

A stub in place of Triton's driver compiles every kernel and launches nothing. Compared are the layer's call,
plain `kernel[grid](...)` launches of the same kernels with the same arguments, and the call of torch's layer
on the same few elements, arithmetic included. All take turns in one run, and ratios are taken turn by turn,
because times on a shared machine drift. A GPU's driver would add the same time to each launch.
"""

import statistics
import time

import torch

import normreg
from bench.harness import tables
from bench.lab import stub_driver
from bench.lab.without_gpu import as_on_a_gpu, noted_launches
from bench.operations import OPERATIONS, cases
from bench.perf import fused_calls

TURNS = 30
CALLS = 50  # of each function in a turn


def contestants(case):
    """Functions without arguments to time: {direction: {name: function}}."""
    operation, found = OPERATIONS[case.operation], {}
    for name, library in (("normreg", normreg), ("torch", torch.nn)):
        layer = operation.layer(library, case, dtype=case.dtype)
        x = case.like_input(torch.randn, "cpu").requires_grad_()
        dy = case.like_input(torch.randn, "cpu")
        wanted = (x, *layer.parameters())
        found["forward", name] = lambda layer=layer, x=x: layer(x)
        y = layer(x)
        found["backward", name] = lambda y=y, wanted=wanted, dy=dy: torch.autograd.grad(
            y, wanted, dy, retain_graph=True
        )
    for direction in ("forward", "backward"):
        with noted_launches() as noted:
            found[direction, "normreg"]()
        found[direction, "plain launch"] = plain_launches(noted)
    return {
        direction: {name: found[direction, name] for name in ("normreg", "plain launch", "torch")}
        for direction in ("forward", "backward")
    }


def plain_launches(noted):
    """A function that makes the same launches as a script would write them."""
    prepared = [
        (entry.kernel, entry.grid, dict(entry.arguments, num_warps=entry.num_warps)) for entry in noted
    ]

    def call():
        for kernel, grid, arguments in prepared:
            kernel[grid](**arguments)

    return call


def microseconds(call):
    """Microseconds of a call, the mean of several."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - begin) / CALLS * 1e6


def measure(case):
    stub_driver.install()
    with as_on_a_gpu():
        for direction, calls in contestants(case).items():
            for call in calls.values():
                call()  # compiles
            turns = [{name: microseconds(call) for name, call in calls.items()} for _ in range(TURNS)]
            samples = {name: [turn[name] for turn in turns] for name in calls}
            yield dict(operation=case.operation, case=str(case), direction=direction, samples_us=samples)


def add_arguments(parser):
    pass


def run(arguments, budget):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for case in budget.within(cases("host", arguments.operations)):
        yield from measure(case)
    if not arguments.operations:
        yield from fused_calls.measure()


def ratio(samples, name):
    """The ratio of normreg's time to another's, the median over the turns."""
    return statistics.median(ours / other for ours, other in zip(samples["normreg"], samples[name]))


def table(records):
    models = [record for record in records if record["operation"] == fused_calls.OPERATION]
    layers = [record for record in records if record not in models]
    parts = [layers_table(layers)] * bool(layers) + [fused_calls.table(models)] * bool(models)
    return "\n\n".join(parts)


def layers_table(records):
    headers = "case | direction | normreg us | plain launch us | torch us | normreg / plain | normreg / torch"
    rows = []
    for record in records:
        samples = record["samples_us"]
        rows.append(
            (
                record["case"],
                record["direction"],
                *(f"{statistics.median(samples[name]):.1f}" for name in ("normreg", "plain launch", "torch")),
                *(f"{ratio(samples, name):.2f}" for name in ("plain launch", "torch")),
            )
        )
    return tables.markdown(headers, rows)


CAPTION = "Python's time on this CPU, with a driver that launches nothing; medians"
