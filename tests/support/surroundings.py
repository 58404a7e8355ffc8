"""What surrounds every test: the device, poisoned memory and guard bands, and torch left as it was found."""

import contextlib
import os
from unittest import mock

import pytest
import torch
from torch.utils._device import _device_constructors

from bench.lab import interpreter
from bench.lab.bounds import Bounds
from normreg.kernels import launch, tiling
from support import guards
from support.reference import HALVES, IN_TILES, WIDE
from support.spies import noting

torch.set_num_threads(1)  # tensors are small, and the processes share the cores
if launch.INTERPRET:
    interpreter.speed_up()
# `with torch.device(...)` remembers the functions that allocate; before torch.empty is guarded
_device_constructors()


@pytest.fixture
def device():
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


autocasts = torch.is_autocast_enabled  # which a test replaces for a while


def state_of_torch():
    return {
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "precision of products": torch.get_float32_matmul_precision(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": [autocasts(device) for device in ("cpu", "cuda")],
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(autouse=True)
def torch_is_left_as_found():
    before = state_of_torch()
    yield
    assert state_of_torch() == before, "a test changed torch for those after it"


@pytest.fixture(autouse=True)
def environment():
    """Undoes what a test changes of the environment."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def gpu_tiles(monkeypatch):
    """Makes the interpreter use a GPU's tiles, so that they are tested."""
    launch.forget()
    monkeypatch.setattr(tiling.hardware, "INTERPRETER_TILE_SCALE", 1)


@pytest.fixture(autouse=True)
def held_words(request, gpu_tiles, monkeypatch):
    """Rows of WIDE columns are too wide to be held, of HALVES but for their sums, of IN_TILES in one tile."""
    cols = request.node.callspec.params.get("cols") if hasattr(request.node, "callspec") else None
    numbers, neither = {}, {False: 0, True: 0}
    if cols == WIDE:
        numbers = dict.fromkeys(("TILE_WORDS_FORWARD", "TILE_WORDS_BACKWARD", "CHUNK_WORDS"), 64)
        numbers |= dict(TILES_BYTES_FORWARD=0, TILES_COLS_BACKWARD=neither, WIDE_WARPS=neither)
    elif cols == HALVES:
        numbers = dict.fromkeys(("TILE_WORDS_BACKWARD", "CHUNK_WORDS"), 512)
        numbers |= dict(TILES_COLS_BACKWARD=neither, WIDE_WARPS={False: 1, True: 1})
        numbers |= dict(WIDE_TILES=dict.fromkeys(tiling.rows.WIDE_TILES, 3), multiprocessors=lambda device: 1)
    elif cols == IN_TILES:
        numbers = dict(TILE_WORDS_BACKWARD=64, CHUNK_WORDS=64, TILES_WARPS_BACKWARD=1, TILES_UNPACKED=0)
    for name, number in numbers.items():
        room = tiling.hardware if hasattr(tiling.hardware, name) else tiling.rows
        monkeypatch.setattr(room, name, number)


@pytest.fixture(autouse=True)
def guarded_memory(monkeypatch):
    """Every tensor that the library allocates starts as NaN, between guard bands checked afterwards."""
    memory = guards.Memory()
    monkeypatch.setattr(torch, "empty", memory.guarding(torch.empty))
    monkeypatch.setattr(torch, "empty_like", memory.guarding(torch.empty_like))
    yield memory
    memory.check()


@pytest.fixture(autouse=True)
def within_bounds():
    """Refuses, in the interpreter, every access outside the tensors of a launch."""
    with Bounds() if launch.INTERPRET else contextlib.nullcontext():
        yield


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels launched so far."""
    names = []
    monkeypatch.setattr(launch, "launch", noting(names))
    return names
