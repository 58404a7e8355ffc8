"""The device of the whole suite, and what surrounds every test: poisoned memory and guard bands."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the first @triton.jit is seen
    os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
    torch.set_num_threads(1)  # tensors are small, and the processes share the cores

import guards
import pytest
import triton
from gpu_watch import GpuWatch
from reference import IN_PARTS, WIDE
from torch.utils._device import _device_constructors

from bench import interpreter
from bench.meter import Meter
from normreg.kernels import launch, tiling

if launch.INTERPRET:
    interpreter.speed_up()
# `with torch.device(...)` remembers the functions that allocate; before torch.empty is guarded
_device_constructors()


def gpu_works():
    try:
        torch.cuda.synchronize()
        torch.rand(1, device="cuda").item()  # refused by a generator that a failed capture has left behind
    except Exception:
        return False
    return True


def pytest_configure(config):
    if torch.cuda.is_available():
        config.pluginmanager.register(GpuWatch(config, gpu_works))


def pytest_report_header():
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "Triton's interpreter"
    return f"torch {torch.__version__}, triton {triton.__version__}, kernels on {where}"


@pytest.fixture
def device():
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def gpu_tiles(monkeypatch):
    """The interpreter takes the tiles of a GPU, so that they are what is tested."""
    launch.forget_plans()
    monkeypatch.setattr(tiling, "INTERPRETER_TILE_SCALE", 1)


@pytest.fixture(autouse=True)
def held_words(request, gpu_tiles, monkeypatch):
    """Rows of WIDE columns are too wide to be held, those of IN_PARTS to be held in one tile or unpacked."""
    cols = request.node.callspec.params.get("cols") if hasattr(request.node, "callspec") else None
    numbers = {}
    if cols == WIDE:
        numbers = dict.fromkeys(("HELD_WORDS_FORWARD", "HELD_WORDS_BACKWARD", "CHUNK_WORDS"), 64)
        numbers |= dict(HELD_BYTES_FORWARD=0, HELD_COLS_BACKWARD={False: 0, True: 0})
    elif cols == IN_PARTS:
        numbers = dict(HELD_WORDS_BACKWARD=64, CHUNK_WORDS=64, HELD_WARPS_BACKWARD=1, HELD_UNPACKED=0)
    for name, number in numbers.items():
        monkeypatch.setattr(tiling, name, number)


@pytest.fixture(autouse=True)
def guarded_memory(monkeypatch):
    """Every tensor that the library allocates starts as NaN, between guard bands checked afterwards."""
    memory = guards.Memory()
    monkeypatch.setattr(torch, "empty", memory.guarding(torch.empty))
    monkeypatch.setattr(torch, "empty_like", memory.guarding(torch.empty_like))
    yield memory
    memory.check()


@pytest.fixture(autouse=True)
def metered():
    """In the interpreter no kernel touches memory outside the tensors of its launch."""
    if not launch.INTERPRET:
        yield None
        return
    with Meter() as meter:
        yield meter


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels launched so far."""
    names = []
    real = launch.launch

    def spy(plan, *tensors, **options):
        names.append(plan.kernel.fn.__name__)
        return real(plan, *tensors, **options)

    monkeypatch.setattr(launch, "launch", spy)
    return names
