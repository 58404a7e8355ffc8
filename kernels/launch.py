"""How a kernel is launched: what is decided once, what is kept, and the one function that launches.

What a call launches is a `Launch`, made once for its sizes and dtypes and kept (`planned`), so that a call
costs Python no arithmetic, and Triton no look at arguments that it has seen before.
"""

import functools

import torch

from normreg.kernels import cpu
from normreg.kernels.tiling import hardware

INTERPRET = cpu.KERNELS == "interpreter"

# Tensors of the launch in progress that are not among its arguments, for who watches what a kernel touches:
# the meter of the interpreter, and a driver that executes compiled code in host memory.
reached_through_tables = []

MOST_PROGRAMS = (2**31 - 1, 65535, 65535)  # that CUDA launches along x, y and z
PLANS = 4096  # kept of an operation and direction
_kept_plans = []


def planned(make):
    """Keeps what `make` returns for the same arguments; not in the interpreter, which has no time to win."""
    if INTERPRET:
        return make
    kept = functools.lru_cache(PLANS)(make)
    _kept_plans.append(kept)
    return kept


def forget_plans():
    """After a change of the numbers of `tiling`."""
    for kept in _kept_plans:
        kept.cache_clear()


class Launch:
    """A kernel's launches that differ in nothing but tensors, and in numbers it is not compiled for.

    Arguments are `tensors`, `numbers` of the one launch, then those given here, then `constants`.
    """

    __slots__ = ("constants", "device", "grid", "kernel", "num_warps", "numbers", "runners", "trailing")

    def __init__(self, kernel, grid, device, *numbers, num_warps, **constants):
        for axis, programs, most in zip("xyz", grid, MOST_PROGRAMS):
            if programs > most:
                raise ValueError(
                    f"{kernel.fn.__name__}: expected at most {most} programs along {axis}, CUDA's limit, "
                    f"got the grid {grid}: what grows with the input belongs on x"
                )
        self.kernel, self.grid, self.device, self.num_warps = kernel, grid, device, num_warps
        self.numbers, self.constants = numbers, constants
        self.trailing = (*numbers, *(constants[name] for name in kernel.arg_names if name in constants))
        self.runners = {}  # of variants that Triton has compiled

    def first(self, tensors, numbers):
        """Triton's own way to launch, which compiles, and returns what it has compiled."""
        num_warps = hardware.warps_of(self.num_warps, hardware.lanes(self.device))
        # fusion stated, because Triton's default changes with its release and results must not
        options = dict(num_warps=num_warps, enable_fp_fusion=True, **self.constants)
        return self.kernel[self.grid](*tensors, *numbers, *self.numbers, **options)

    def again(self, tensors, numbers):
        """The same, looking at nothing except what makes another variant: dtypes and aligned addresses."""
        variant = tuple([None if t is None else (t.dtype, t.data_ptr() % 16 == 0) for t in tensors])
        runner = self.runners.get(variant)
        if runner is not None:
            runner(*tensors, *numbers, *self.trailing)
            return
        compiled = self.first(tensors, numbers)
        if compiled.metadata.target.backend == "cuda":  # others' variants depend on more
            grid = (*self.grid, 1, 1)[:3]
            self.runners[variant] = compiled[grid]


kept_launch = planned(Launch)


def launch(plan, *tensors, numbers=(), through=()):
    """Runs a kernel on its device, whichever device is current.

    numbers: those that differ from launch to launch, of which the kernel states the type.
    through: tensors that the kernel reaches through a table of their addresses.
    """
    run = plan.first if INTERPRET else plan.again
    if INTERPRET or plan.device.type == "cpu":
        reached_through_tables[:] = through
        try:
            run(tensors, numbers)
        finally:
            reached_through_tables.clear()
    elif plan.device.type != "cuda" or plan.device.index == torch.cuda.current_device():
        run(tensors, numbers)
    else:
        with torch.cuda.device(plan.device):
            run(tensors, numbers)


def contiguous(*tensors):
    """The tensors, None kept, with their elements in logical order."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]
