"""The time that Python takes from a layer's call to the launch of its kernels. Needs no GPU.

A stub in place of Triton's driver compiles every kernel and launches nothing. Compared are the layer's call,
plain `kernel[grid](...)` launches of the same kernels with the same arguments, and the call of torch's layer
on the same few elements, arithmetic included. All take turns in one run. A GPU's driver would add the same
time to each launch. A second table has the parts of the layer's call.
"""

import torch

import normreg
from bench.harness import tables, turns
from bench.lab import stub_driver
from bench.lab.without_gpu import as_on_a_gpu, noted_launches
from bench.operations import OPERATIONS, cases
from bench.perf import fused_calls
from bench.perf.host_parts import PARTS, REST, own_times, parts

TURNS = 30
CALLS = 50  # of each function in a turn
CONTESTANTS = ("normreg", "plain launch", "torch")
WITHOUT_GRADIENT = "forward, no gradient"
DIRECTIONS = ("forward", WITHOUT_GRADIENT, "backward")


def contestants(case):
    """Functions without arguments to time: {direction: {name: function}}."""
    operation, found = OPERATIONS[case.operation], {direction: {} for direction in DIRECTIONS}
    for name, library in (("normreg", normreg), ("torch", torch.nn)):
        layer = operation.layer(library, case, dtype=case.dtype)
        x = case.like_input(torch.randn, "cpu").requires_grad_()
        dy = case.like_output(torch.randn, "cpu")
        wanted = (x, *layer.parameters())
        found["forward"][name] = found[WITHOUT_GRADIENT][name] = lambda layer=layer, x=x: layer(x)
        y = layer(x)
        found["backward"][name] = lambda y=y, wanted=wanted, dy=dy: torch.autograd.grad(
            y, wanted, dy, retain_graph=True
        )
    return found


def plain_launches(noted):
    """A function that makes the same launches as a script would write them."""
    prepared = [
        (entry.kernel, entry.grid, dict(entry.arguments, num_warps=entry.num_warps)) for entry in noted
    ]

    def call():
        for kernel, grid, arguments in prepared:
            kernel[grid](**arguments)

    return call


def measure(case):
    stub_driver.install()
    with as_on_a_gpu():
        for direction, functions in contestants(case).items():
            with torch.set_grad_enabled(direction != WITHOUT_GRADIENT):
                call = functions["normreg"]
                call()  # compiles
                with noted_launches() as noted:
                    call()
                functions = functions | {"plain launch": plain_launches(noted)} | parts(call)
                samples = turns.samples(functions, TURNS, CALLS)
            shared = dict(operation=case.operation, case=str(case), direction=direction)
            for key, names in (("samples_us", CONTESTANTS), ("parts_us", PARTS)):
                shared[key] = {name: samples[name] for name in names if name in samples}
            yield shared


def add_arguments(parser):
    pass


def run(arguments, budget):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for case in budget.within(cases("host", arguments.operations)):
        yield from measure(case)
    if not arguments.operations:
        yield from fused_calls.measure()


def table(records):
    models = [record for record in records if record["operation"] == fused_calls.OPERATION]
    layers = [record for record in records if record not in models]
    tables_of_layers = [layers_table(layers), parts_table(layers)] if layers else []
    made = "\n\n".join(tables_of_layers + [fused_calls.table(models)] * bool(models))
    return tables.explained(made, " ".join([WORDS] * bool(layers) + [fused_calls.WORDS] * bool(models)))


def layers_table(records):
    headers = "case | direction | normreg us | plain launch us | torch us | normreg / plain | normreg / torch"
    rows = []
    for record in records:
        times = turns.times(record["samples_us"])
        ratios = [times["normreg"] / times[name] for name in ("plain launch", "torch")]
        numbers = [f"{times[name]:.1f}" for name in CONTESTANTS] + [f"{ratio:.2f}" for ratio in ratios]
        rows.append((record["case"], record["direction"], *numbers))
    return tables.text(headers, rows, grouped=1)


def parts_table(records):
    headers = ("case", "direction", "normreg us", *PARTS, REST)
    rows = []
    for record in records:
        call = turns.times(record["samples_us"])["normreg"]
        own = own_times(call, turns.times(record["parts_us"]))
        numbers = [call, *(own.get(part) for part in (*PARTS, REST))]
        cells = ["" if number is None else f"{number:.1f}" for number in numbers]
        rows.append((record["case"], record["direction"], *cells))
    return tables.text(headers, rows, grouped=1)


WORDS = (
    "normreg us: a call of our layer, in microseconds. plain launch us: plain kernel[grid](...) launches "
    "of the same kernels with the same arguments. torch us: torch's layer on the same few elements, "
    "arithmetic included. Parts of a call: dispatch decides between kernel and torch; autograd is the "
    f"autograd.Function around the launcher, which makes tensors (allocations) and launches; {REST} is "
    "what is left of the call: the module, the function, the choice of path and, in a backward, "
    "autograd's engine."
)
CAPTION = (
    "Python's time on this CPU, with a driver that launches nothing; times are those of the fastest turn, "
    "ratios those of the times beside them; allocations and launches are parts of the launcher"
)
