"""The checks of `smoke`: each takes a case's name, in whatever process it runs, and returns a record."""

import statistics
import time
import warnings

import torch

import normreg
from bench.harness import turns
from bench.harness.worker import first_line
from bench.lab import interpreter
from bench.lab.without_gpu import as_on_a_gpu
from bench.smoke.cases import cases
from bench.smoke.problems import SEED, P
from normreg import functional as N
from normreg.kernels import launch

DEVICE = "cpu" if launch.INTERPRET else "cuda"
# How many units in the last place, of the dtype at the size of the result, our error may exceed torch's by.
# So far does another order of summation move sums that cancel, not in 16 bits; a wrong kernel moves more.
UNITS = {torch.bfloat16: 1, torch.float16: 1, torch.float32: 64, torch.float64: 256}
SIGMAS = 6  # of the share of kept elements: a right one is further off once in 10^9 runs
CALLS, TURNS = 100, 7


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def run(function, inputs):
    """Results and gradients of the inputs, for the same mask and the same incoming gradients every time."""
    torch.manual_seed(SEED)
    results = function(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    differentiable = [y for y in results if y.requires_grad]
    return [y.detach() for y in results], torch.autograd.grad(
        differentiable, inputs, [incoming(y) for y in differentiable]
    )


def incoming(y):
    """The same numbers for a y of any dtype, so that float64 is given what the others are given."""
    generator = torch.Generator(y.device).manual_seed(SEED)
    drawn = torch.randn(y.shape, device=y.device, dtype=torch.float64, generator=generator)
    return drawn.bfloat16().to(y.dtype)


def leaves(inputs, dtype=None):
    return [x.detach().clone().to(dtype or x.dtype).requires_grad_() for x in inputs]


def error_in_units(result, exact):
    if result.shape != exact.shape:
        return float("inf")
    unit = max(exact.abs().max().item() * torch.finfo(result.dtype).eps, torch.finfo(result.dtype).tiny)
    return ((result.double() - exact).abs().max() / unit).item()


def judged(right):
    """Where a result is wrong, and not only missing, the record says so."""
    return dict(ok=True) if right else dict(ok=False, wrong_value=True)


def agrees(case, device=DEVICE):
    """Results and gradients against float64, torch's error beside ours, in units of the dtype."""
    problem = case.problem(device)
    begin = time.perf_counter()
    ours, our_gradients = run(problem.ours, leaves(problem.inputs))
    synchronize()
    first_s = time.perf_counter() - begin
    theirs, their_gradients = run(problem.theirs, leaves(problem.inputs))
    exact, exact_gradients = run(problem.theirs, leaves(problem.inputs, torch.float64))
    ours, theirs, exact = (*ours, *our_gradients), (*theirs, *their_gradients), (*exact, *exact_gradients)
    errors = [[error_in_units(*pair) for pair in zip(results, exact)] for results in (ours, theirs)]
    allowed = [units + UNITS[result.dtype] for units, result in zip(errors[1], ours)]
    same_dtypes = [y.dtype for y in ours] == [y.dtype for y in theirs]
    right = same_dtypes and all(error <= most for error, most in zip(errors[0], allowed))  # nan is wrong
    record = dict(ours=[round(e, 2) for e in errors[0]], torch=[round(e, 2) for e in errors[1]])
    return record | dict(first_s=round(first_s, 2)) | judged(right)


def draws(device=DEVICE):
    """Dropout's share of kept elements, its scale, and that the seed alone decides the mask."""
    elements = 2**16 if launch.INTERPRET else 2**20
    x = torch.ones(elements, device=device, dtype=torch.bfloat16, requires_grad=True)
    torch.manual_seed(SEED)
    keep = normreg.dropout_mask(N.dropout, x, P)
    first, second = N.dropout(x, P), N.dropout(x, P)
    torch.manual_seed(SEED)
    again = N.dropout(x, P)
    (dx,) = torch.autograd.grad(first.sum(), x)
    kept = (first != 0).double().mean().item()
    found = {
        "as asked for": torch.equal(first != 0, keep),
        "scaled": bool(((first[keep].double() * (1 - P) - 1).abs() <= torch.finfo(x.dtype).eps).all()),
        "share": abs(kept - (1 - P)) < SIGMAS * (P * (1 - P) / elements) ** 0.5,
        "same seed, same mask": torch.equal(first, again),
        "next call, next mask": not torch.equal(first, second),
        "backward as forward": torch.equal(dx, first),
    }
    wrong = [name for name, holds in found.items() if not holds]
    return dict(kept=kept, wrong=wrong) | judged(not wrong)


def on_another_stream(case):
    """Inputs that a busy stream has yet to write: launched on any other, kernels would read zeros."""
    problem = case.problem(DEVICE)
    expected = run(problem.ours, leaves(problem.inputs))
    written = [torch.zeros_like(x) for x in problem.inputs]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # about 30 ms
        for empty, x in zip(written, problem.inputs):
            empty.copy_(x)
        found = run(problem.ours, [x.requires_grad_() for x in written])
    stream.synchronize()
    right = all(map(torch.equal, (*found[0], *found[1]), (*expected[0], *expected[1])))
    return judged(right)


def in_a_graph(case):
    """Captured and replayed twice: the eager result where nothing is drawn, else two masks."""
    problem = case.problem(DEVICE)
    inputs = leaves(problem.inputs)

    def step():
        results = problem.ours(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        differentiable = [y for y in results if y.requires_grad]
        return [*results, *torch.autograd.grad(differentiable, inputs, dys[: len(differentiable)])]

    dys = [incoming(y) for y in run(problem.ours, inputs)[0]]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            eager = step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    replays = []
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        replays.append([t.clone() for t in captured])
    if problem.draws:
        right = not torch.equal(replays[0][0], replays[1][0])
        return dict(found="another mask" if right else "the same mask twice", ok=right)
    right = all(map(torch.equal, replays[0], eager)) and all(map(torch.equal, replays[0], replays[1]))
    return dict(found="as in eager mode" if right else "another result than in eager mode", ok=right)


LAYERS = {
    "LayerNorm 8x768": (lambda library: library.LayerNorm(768), (8, 768)),
    "RMSNorm 8x768": (lambda library: library.RMSNorm(768), (8, 768)),
    "BatchNorm2d 2x64x7x7": (lambda library: library.BatchNorm2d(64), (2, 64, 7, 7)),
    "GroupNorm 2x64x8x8": (lambda library: library.GroupNorm(8, 64), (2, 64, 8, 8)),
    "Dropout 8x768": (lambda library: library.Dropout(0.1), (8, 768)),
}


def _calls(name, library, device=DEVICE):
    """{"without gradient": the call, "with gradient": the call and its backward}"""
    make, shape = LAYERS[name]
    layer, x = make(library).to(device), torch.randn(shape, device=device, requires_grad=True)
    wanted, dy = (x, *layer.parameters()), torch.randn(shape, device=device)

    def without():
        with torch.no_grad():
            layer(x)

    return {
        "without gradient": without,
        "with gradient": lambda: torch.autograd.grad(layer(x), wanted, dy),
    }


def first_call(name):
    """Compiles what `host_time` calls, side by side with other processes."""
    begin = time.perf_counter()
    for call in _calls(name, normreg).values():
        call()
    synchronize()
    return dict(first_s=round(time.perf_counter() - begin, 2), ok=True)


def _microseconds(call):
    synchronize()
    return turns.microseconds(call, CALLS)


def host_time(name):
    """Microseconds of the host a call, with and without gradient; nothing waits for a GPU on few elements."""
    contestants = {library.__name__: _calls(name, library) for library in (normreg, torch.nn)}
    record = {}
    for kind in ("without gradient", "with gradient"):
        for calls in contestants.values():
            _microseconds(calls[kind])
        taken = [[_microseconds(calls[kind]) for calls in contestants.values()] for _ in range(TURNS)]
        medians = map(statistics.median, zip(*taken))
        record[kind] = dict(zip(("normreg", "torch"), (round(m, 1) for m in medians)))
    return dict(host_us=record, ok=True)


def answers():
    """Whether the GPU computes anything at all."""
    return dict(ok=torch.arange(1000, device=DEVICE).sum().item() == 499500)


def do(check, name):
    """The record of a check on what is named. A fault is a result; one that spoils the process says so."""
    function, argument = CHECKS[check]
    if launch.INTERPRET:
        interpreter.speed_up()
        # numpy warns where a GPU gives inf or nan in silence
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton.runtime.interpreter")
    try:
        return function(*argument(name))
    except Exception as error:
        return dict(ok=False, error=first_line(error), spoiled=DEVICE == "cuda" and not _still_answers())


def _still_answers():
    """After a fault: an illegal address spoils the process, a failed capture the generator."""
    try:
        torch.cuda.synchronize()
        torch.rand(8, device=DEVICE)
        return answers()["ok"]
    except Exception:
        return False


def named(name):
    return next(case for case in cases() if str(case) == name)


CHECKS = {  # {check: (function, what its arguments are of a name)}
    "agrees": (agrees, lambda name: (named(name),)),
    "draws": (draws, lambda _: ()),
    "another stream": (on_another_stream, lambda name: (named(name),)),
    "CUDA graph": (in_a_graph, lambda name: (named(name),)),
    "first call": (first_call, lambda name: (name,)),
    "host time": (host_time, lambda name: (name,)),
    "answers": (answers, lambda _: ()),
}
ALONE = ("CUDA graph",)  # in a process that does nothing before or after


def compile_only(check, name):
    """Compiles what a check launches first, of tensors of the CPU, under a driver that launches nothing."""
    with as_on_a_gpu():
        if check == "first call":
            for call in _calls(name, normreg, "cpu").values():
                call()
            return
        problem = named(name).problem("cpu")
        run(problem.ours, leaves(problem.inputs))
