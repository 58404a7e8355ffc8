"""By what kernels run in a session, and which tests are run."""

import importlib
import os
import re
import zlib
from pathlib import Path

import pytest
import torch
from gpu_watch import GpuWatch

DTYPE = re.compile(r"torch\.(float16|bfloat16|float32|float64|complex64|complex128)\b")
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start

# Files test_*.py of kernels, which without a GPU run on compiled code.
KERNELS = (
    "rows", "layer_norm", "rms_norm", "layer_norm_channels", "batch_norm", "batch_norm_act", "group_norm",
    "instance_norm", "dropout", "dropout_family", "dropout_add", "dropout_add_norm", "l2_penalty",
    "large_reductions", "course_notes",
)  # fmt: skip
# Those whose tests `pytest -m gpu` runs, on what a GPU alone can show: the kernels compiled, in its memory,
# beside torch's own kernels.
ON_A_GPU = (
    *KERNELS, "on_gpu", "gradient", "operations", "operators", "compile", "saved_bytes", "devices", "convert",
    "dispatch",
)  # fmt: skip
# Those about compiled code, which need no GPU.
COMPILED = ("barriers", "lab", "static", "trained")
# The others: what a GPU shows no better, or what takes minutes.
ELSEWHERE = (
    "bench", "conftest", "cpu_kernels", "data_parallel", "diagnose", "explain", "far_offsets", "foreign",
    "fuse", "gpu_pass", "gpu_watch", "init", "interpreter", "lab_counts", "lab_faults",
    "lab_instructions", "lab_races", "lab_warps", "launch", "meter", "models", "package",
    "parameter_groups", "planted", "planted_notes", "processes", "readme", "report", "running_statistics",
    "smoke", "speed", "study", "sync_batch_norm", "tensor_parallel", "tiling", "timing", "torch_cases",
    "transformers", "worker",
)  # fmt: skip


def pytest_addoption(parser):
    parser.addoption(
        "--all", action="store_true", help="also the tests marked slow, and the slow form of others"
    )


@pytest.fixture(scope="session")
def thorough(pytestconfig):
    """Whether tests with a fast form take the slow one."""
    return pytestconfig.option.all


def stem(path):
    return path.stem.removeprefix("test_")


def pytest_ignore_collect(collection_path, config):
    """Files of which -m gpu or -m compiled run no test are not imported, which takes each worker seconds."""
    files = {"gpu": ON_A_GPU, "compiled": (*KERNELS, *COMPILED)}.get(config.option.markexpr)
    if files is not None and collection_path.suffix == ".py" and stem(collection_path) not in files:
        return True


def one_dtype_of_each(items):
    """Of tests that differ in nothing but a floating dtype one: which, differs from test to test."""
    alike = {}
    for item in items:
        alike.setdefault(DTYPE.sub("", item.nodeid), []).append(item)
    return [of[zlib.crc32(key.encode()) % len(of)] for key, of in alike.items()]


@pytest.hookimpl(tryfirst=True)  # before -m is asked
def pytest_collection_modifyitems(config, items):
    on_a_gpu = torch.cuda.is_available()
    if not config.option.all:
        chosen = [item for item in items if not item.get_closest_marker("slow")]
        if not on_a_gpu:
            chosen = one_dtype_of_each(chosen)
        left_out = {*items}.difference(chosen)
        config.hook.pytest_deselected(items=[*left_out])
        items[:] = chosen
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    ids = {item.nodeid for item in items} if on_a_gpu else set()
    for item in items:
        if item.get_closest_marker("interpreter"):
            if not interpreted:
                item.add_marker(pytest.mark.skip(reason="needs Triton's interpreter"))
            continue
        # of tests in both 16-bit dtypes a GPU runs the one that rounds more: an eighth less to compile
        twin = item.nodeid.replace("torch.float16", "torch.bfloat16")
        if stem(item.path) in ON_A_GPU and (twin == item.nodeid or twin not in ids):
            item.add_marker("gpu")
        if stem(item.path) in (*KERNELS, *COMPILED):
            item.add_marker("compiled")
        if stem(item.path) in COMPILED and interpreted:
            item.add_marker(pytest.mark.skip(reason="needs kernels compiled"))


def gpu_works():
    try:
        torch.cuda.synchronize()
        torch.rand(1, device="cuda").item()  # refused by a generator that a failed capture has left behind
    except Exception:
        return False
    return True


def kernels_of_the_cpu(config):
    """By what, where the environment does not say: compiled code, if all files that were named are for it."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "interpreter"
    named = {Path(name.partition("::")[0]) for name in config.args}
    chosen = "compiled" if {stem(path) for path in named} <= {*KERNELS, *COMPILED} else "interpreter"
    return os.environ.get("NORMREG_CPU_KERNELS", chosen)


def pytest_configure(config):
    if torch.cuda.is_available():
        os.environ.pop("NORMREG_CPU_KERNELS", None)
        config.pluginmanager.register(GpuWatch(config, gpu_works))
    elif kernels_of_the_cpu(config) == "compiled":
        from bench import lab

        lab.install()
    else:
        os.environ.pop("NORMREG_CPU_KERNELS", None)
        os.environ["TRITON_INTERPRET"] = "1"  # which processes that tests start read as well
    config.pluginmanager.register(importlib.import_module("surroundings"))


def pytest_report_header():
    import triton

    from normreg.kernels import cpu

    gpu = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if gpu else f"the CPU: {cpu.KERNELS}"
    return f"torch {torch.__version__}, triton {triton.__version__}, kernels on {where}"
