"""The device of the whole suite, and what surrounds every test: poisoned memory and guard bands."""

import os
from unittest import mock

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the first @triton.jit is seen
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start

import guards
import pytest
import triton
from gpu_watch import GpuWatch
from reference import IN_PARTS, WIDE
from torch.utils._device import _device_constructors

from bench import interpreter
from bench.meter import Meter
from normreg.kernels import launch, tiling

torch.set_num_threads(1)  # tensors are small, and the processes share the cores
if launch.INTERPRET:
    interpreter.speed_up()
# `with torch.device(...)` remembers the functions that allocate; before torch.empty is guarded
_device_constructors()


# Files test_*.py whose tests `pytest -m gpu` runs, on what a GPU alone can show: the kernels compiled, in its
# memory, beside torch's own kernels.
ON_A_GPU = (
    "on_gpu", "layer_norm", "rms_norm", "layer_norm_channels", "batch_norm", "batch_norm_act", "group_norm",
    "instance_norm", "dropout", "dropout_family", "dropout_add", "dropout_add_norm", "gradient", "l2_penalty",
    "operators", "compile", "saved_bytes", "devices", "large_reductions", "convert", "dispatch",
    "course_notes",
)  # fmt: skip
# The others: what a GPU shows no better, or what takes minutes.
ELSEWHERE = (
    "bench", "conftest", "data_parallel", "diagnose", "explain", "far_offsets", "foreign", "fuse", "gpu_pass",
    "gpu_watch", "init", "interpreter", "launch", "meter", "models", "mutations", "package",
    "parameter_groups", "processes", "readme", "report", "running_statistics", "smoke", "speed", "static",
    "study", "sync_batch_norm", "tensor_parallel", "tiling", "timing", "torch_cases", "transformers",
    "worker",
)  # fmt: skip


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="also the tests marked slow, and the slow form of others")


@pytest.fixture(scope="session")
def thorough(pytestconfig):
    """Whether tests with a fast form take the slow one."""
    return pytestconfig.option.all


def stem(path):
    return path.stem.removeprefix("test_")


def pytest_ignore_collect(collection_path, config):
    """Files of which -m gpu runs no test are not imported, which takes each worker seconds."""
    if config.option.markexpr == "gpu" and stem(collection_path) in ELSEWHERE:
        return True


@pytest.hookimpl(tryfirst=True)  # before -m is asked
def pytest_collection_modifyitems(config, items):
    if not config.option.all:
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    ids = {item.nodeid for item in items}
    for item in items:
        # of tests in both 16-bit dtypes the one that rounds more: an eighth of the kernels to compile less
        twin = item.nodeid.replace("torch.float16", "torch.bfloat16")
        if stem(item.path) in ON_A_GPU and (twin == item.nodeid or twin not in ids):
            item.add_marker("gpu")


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
    """What a test changes of it is as it was for those after it."""
    with mock.patch.dict(os.environ):
        yield


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
