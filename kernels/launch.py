"""`Launch`: what is decided once for sizes and dtypes and kept, and `launch`, which runs it on tensors.

A warm call costs Python no arithmetic, and Triton no look at arguments that it has seen before.
"""

import contextlib
import copy
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, TypeVar

import torch
import triton

from normreg.kernels import cpu
from normreg.kernels.tiling import hardware

INTERPRET = cpu.KERNELS == "interpreter"

MOST_PROGRAMS = (2**31 - 1, 65535, 65535)  # that CUDA launches along x, y and z
KEPT = 4096  # results of a function, at most
_forgetting: list[Callable[[], None]] = []  # empties what one function has kept
Make = TypeVar("Make", bound=Callable[..., Any])

RECORDING: set[int] = set()  # threads whose launches are recorded
STREAM = -1  # no stream's handle
RUNTIME = triton.knobs.runtime
HOOKS = RUNTIME.launch_enter_hook, RUNTIME.launch_exit_hook  # chains, empty unless somebody listens


def kept(make: Make) -> Make:
    """Keeps what `make` returns for the same arguments; not in the interpreter, which has no time to win."""
    if INTERPRET:
        return make
    keeping = functools.lru_cache(KEPT)(make)
    _forgetting.append(keeping.cache_clear)
    return keeping


def forget() -> None:
    """Forgets everything kept: what tests need after they have changed a number of `tiling`."""
    for clear in _forgetting:
        clear()


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    """Records this thread's launches, as twins, in the trace that is being made."""
    thread = threading.get_ident()
    RECORDING.add(thread)
    try:
        yield
    finally:
        RECORDING.remove(thread)


def fields(kind: Any) -> tuple[str, ...]:
    """Names of the tensors that a parameter takes which is annotated with a NamedTuple, else none."""
    return getattr(kind, "_fields", ())


class Launch:
    """A kernel's launches that differ in nothing but tensors, and in numbers it is not compiled for.

    A kernel's arguments are tensors, numbers of the one launch, then `numbers`, then `constants`. A parameter
    that is annotated with a NamedTuple takes as many of the tensors as that has fields.
    """

    __slots__ = (
        "arrange",
        "constants",
        "device",
        "gpu",
        "grid",
        "kernel",
        "kinds",
        "num_warps",
        "numbers",
        "runners",
        "trailing",
    )

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        device: torch.device,
        *numbers: float,
        num_warps: int,
        **constants: Any,
    ) -> None:
        for axis, programs, most in zip("xyz", grid, MOST_PROGRAMS):
            if programs > most:
                raise ValueError(
                    f"{kernel.fn.__name__}: expected at most {most} programs along {axis}, CUDA's limit, "
                    f"got the grid {grid}: what grows with the input belongs on x"
                )
        self.kernel, self.grid, self.device, self.num_warps = kernel, grid, device, num_warps
        self.gpu = device.index if device.type == "cuda" else None
        self.numbers, self.constants = numbers, constants
        self.trailing = (*numbers, *(constants[name] for name in kernel.arg_names if name in constants))
        self.kinds = [kernel.fn.__annotations__.get(name) for name in kernel.arg_names]
        self.arrange = arrangement(self.kinds)
        self.runners: dict[tuple, Callable[..., None]] = {}  # of variants that Triton has compiled

    def arguments(self, tensors: Sequence[torch.Tensor | None], numbers: Sequence[float] = ()) -> list[Any]:
        """The kernel's arguments, tuples of tensors as the NamedTuples that the kernel reads."""
        arranged = self.arrange((*tensors, *numbers, *self.trailing))
        return [kind(*value) if fields(kind) else value for kind, value in zip(self.kinds, arranged)]

    def first(self, tensors: Sequence[torch.Tensor | None], numbers: Sequence[float]) -> Any:
        """Triton's own way to launch, which compiles, and returns what it has compiled."""
        num_warps = hardware.warps_of(self.num_warps, hardware.lanes(self.device))
        # fusion stated, because Triton's default changes with its release and results must not
        options = dict(num_warps=num_warps, enable_fp_fusion=True)
        return self.kernel[self.grid](*self.arguments(tensors, numbers), **options)

    def record(self, tensors: Sequence[torch.Tensor | None], numbers: Sequence[float]) -> None:
        """Records the launch instead of making it."""
        from normreg.kernels import twins  # which need Triton itself

        num_warps = hardware.warps_of(self.num_warps, hardware.lanes(self.device))
        values = self.arrange((*tensors, *numbers, *self.trailing))
        twins.launch_twin(self.kernel, self.grid, num_warps, self.kinds, values)

    def again(self, tensors: Sequence[torch.Tensor | None], numbers: Sequence[float]) -> None:
        """Launches, looking at nothing except what makes another variant: dtypes and aligned addresses."""
        addresses = 0
        variant: list[Any] = []
        for t in tensors:
            if t is None:
                variant.append(None)
            else:
                variant.append(t.dtype)
                addresses |= t.data_ptr()
        if addresses % 16:
            variant += [t is None or t.data_ptr() % 16 == 0 for t in tensors]
        key = tuple(variant)
        arguments = self.arrange((*tensors, *numbers, *self.trailing))
        runner = self.runners.get(key)
        if runner is not None:
            runner(arguments)
            return
        compiled = self.first(tensors, numbers)
        if compiled.metadata.target.backend == "cuda":  # others' variants depend on more
            self.runners[key] = runner_of(compiled, (*self.grid, 1, 1)[:3], self.gpu, arguments)


def runner_of(
    compiled: Any, grid: tuple[int, ...], gpu: int | None, example: tuple
) -> Callable[[tuple], None]:
    """A function of a tuple, the kernel's arguments, that launches on the current stream of this GPU.

    It launches as Triton does, but where no hook listens, makes nothing for hooks. example: some arguments.
    """
    x, y, z = grid
    run, function, packed = compiled.run, compiled.function, compiled.packed_metadata
    current_stream, as_triton_does = triton.runtime.driver.active.get_current_stream, compiled[grid]
    enter, leave = HOOKS
    in_c = c_function(run, grid, function, packed, example)
    launch_in_c, constants = in_c or (None, ())

    def call(arguments: tuple) -> None:
        if (
            RUNTIME.launch_enter_hook is not enter
            or RUNTIME.launch_exit_hook is not leave
            or enter.calls
            or leave.calls
        ):
            as_triton_does(*arguments)
        elif launch_in_c is not None:
            launch_in_c(x, y, z, current_stream(gpu), *constants, arguments)
        else:
            run(x, y, z, current_stream(gpu), function, packed, None, None, None, *arguments)

    return call


def c_function(
    launcher: Any, grid: tuple[int, ...], function: Any, packed: Any, example: tuple
) -> tuple[Callable[..., None], tuple] | None:
    """What Triton's launcher calls, and what it gives that between stream and arguments, if it does no more.

    It is watched once: since Triton 3.7, a launcher for CUDA calls one C function, with constants beside what
    it was given, unless a kernel needs scratch memory.
    """
    scratch = [getattr(launcher, f"{kind}_scratch_size", None) for kind in ("global", "profile")]
    if not hasattr(launcher, "launch") or scratch != [0, 0] or getattr(launcher, "gsan_enabled", False):
        return None
    seen: list[tuple] = []
    watched = copy.copy(launcher)
    watched.launch = lambda *given: seen.append(given)
    watched(*grid, STREAM, function, packed, None, None, None, *example)
    *before, arguments = seen[0] if len(seen) == 1 else (None,)
    if type(arguments) is not tuple or [*map(id, arguments)] != [*map(id, example)]:
        return None
    return (launcher.launch, tuple(before[4:])) if before[:4] == [*grid, STREAM] else None


def arrangement(kinds: Sequence[Any]) -> Callable[[tuple], tuple]:
    """The function that puts a kernel's arguments, given one by one, into the tuples that its parameters are.

    Compiled code takes any tuple: a launch saves the time that NamedTuples take to make.
    """
    places: list[int | slice] = []
    first = 0
    for kind in kinds:
        count = len(fields(kind))
        places.append(slice(first, first + count) if count else first)
        first += count or 1
    return itemgetter(*places) if any(map(fields, kinds)) else tuple


def launch(call: Launch, *tensors: torch.Tensor | None, numbers: Sequence[float] = ()) -> None:
    """Runs a kernel on its device, whichever device is current.

    numbers: those that differ from launch to launch, of which the kernel states the type.
    """
    if RECORDING and threading.get_ident() in RECORDING:
        call.record(tensors, numbers)
        return
    run = call.first if INTERPRET else call.again
    if call.gpu is None or call.gpu == torch.cuda.current_device():
        run(tensors, numbers)
    else:
        with torch.cuda.device(call.device):
            run(tensors, numbers)
