"""The launches and choices of a GPU, seen on a machine that has none."""

import contextlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import torch

from normreg.kernels import cpu, launch, tiling
from normreg.ops import seed

MULTIPROCESSORS = 132  # of an H100 or H200


def drawn(device, generator=None):
    """A seed without a launch, as a GPU's is."""
    return 1


@contextlib.contextmanager
def as_on_a_gpu():
    """Makes tensors of the CPU take the path, the tiles and the grids of a GPU's."""
    launch.forget()  # with other grids
    with (
        mock.patch.object(cpu, "KERNELS", cpu.KERNELS or "compiled"),  # tensors of the CPU go to the kernels
        mock.patch.object(tiling.hardware, "INTERPRETER_TILE_SCALE", 1),
        mock.patch.object(tiling.hardware, "multiprocessors", return_value=MULTIPROCESSORS),
        mock.patch.object(tiling.hardware, "has_float8", return_value=True),
        mock.patch.object(seed, "draw", drawn),
    ):
        try:
            yield
        finally:
            launch.forget()


# functions of peers that count multiprocessors only where a tensor's device is "cuda"
ASK_FOR_CUDA = {
    "liger_kernel": (
        "liger_kernel.ops.layer_norm.layer_norm_backward",
        "liger_kernel.ops.rms_norm.rms_norm_backward",
    )
}


def taking_the_cpu_for_cuda(function):
    """Compiles a function again, so that its branch for tensors of CUDA takes those of the CPU."""
    source = inspect.getsource(function)
    asked, answered = 'device.type == "cuda"', 'device.type == "cpu"'
    if asked not in source:
        raise ValueError(
            f"{function.__module__}.{function.__name__}: expected {asked} in it, found it nowhere"
        )
    made = {}
    exec(
        compile(source.replace(asked, answered), inspect.getfile(function), "exec"),
        function.__globals__,
        made,
    )
    return made[function.__name__]


@contextlib.contextmanager
def seen_by_peers(package):
    """Answers a peer's questions to torch.cuda as an H100 would."""
    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3",
        major=9,
        minor=0,
        multi_processor_count=MULTIPROCESSORS,
        total_memory=80 * 2**30,
        warp_size=32,
    )
    with contextlib.ExitStack() as stack:
        for name, answer in (("get_device_properties", properties), ("get_device_capability", (9, 0))):
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, answer=answer: answer))
        for path in ASK_FOR_CUDA.get(package, ()) if importlib.util.find_spec(package) else ():
            module, _, name = path.rpartition(".")
            module = importlib.import_module(module)
            function = taking_the_cpu_for_cuda(getattr(module, name))
            stack.enter_context(mock.patch.object(module, name, function))
        yield


@dataclass(frozen=True)
class Launch:
    kernel: Callable
    grid: tuple
    arguments: dict  # by name, constants included
    num_warps: int


@contextlib.contextmanager
def noted_launches():
    """Notes the launches that would be made meanwhile. No kernel runs: outputs stay uninitialised."""
    noted = []

    def note(call, *tensors, numbers=()):
        arguments = dict(zip(call.kernel.arg_names, call.arguments(tensors, numbers), strict=True))
        noted.append(Launch(call.kernel, call.grid, arguments, call.num_warps))

    with mock.patch.object(launch, "launch", note):
        yield noted
