"""What a GPU would be made to do, seen on a machine that has none."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

from normreg.kernels import cpu, launch, tiling
from normreg.ops import seed

MULTIPROCESSORS = 132  # of an H100 or H200


@contextlib.contextmanager
def as_on_a_gpu():
    """Tensors of the CPU take the path, the tiles and the grids of a GPU's."""
    with (
        mock.patch.object(cpu, "KERNELS", cpu.KERNELS or "compiled"),  # tensors of the CPU go to the kernels
        mock.patch.object(tiling, "INTERPRETER_TILE_SCALE", 1),
        mock.patch.object(launch, "multiprocessors", return_value=MULTIPROCESSORS),
        mock.patch.object(seed, "draw", return_value=1),  # a GPU's comes from its generator without a launch
    ):
        yield


@dataclass(frozen=True)
class Launch:
    kernel: Callable
    grid: tuple
    arguments: dict  # by name, constants included
    num_warps: int


@contextlib.contextmanager
def noted_launches():
    """The launches that would have been made meanwhile. No kernel runs: outputs stay uninitialised."""
    noted = []

    def note(plan, *tensors, numbers=(), through=()):
        names = [name for name in plan.kernel.arg_names if name not in plan.constants]
        arguments = dict(zip(names, (*tensors, *numbers, *plan.numbers), strict=True)) | plan.constants
        noted.append(Launch(plan.kernel, plan.grid, arguments, plan.num_warps))

    with mock.patch.object(launch, "launch", note):
        yield noted
