"""What kernels run on in a session of pytest, and what `selection` says of its tests."""

import importlib
import os
from pathlib import Path

import pytest
import torch
from support import places, selection
from support.gpu_watch import GpuWatch
from support.selection import folder

os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start


def pytest_addoption(parser):
    parser.addoption(
        "--all", action="store_true", help="also the tests marked slow, and the slow form of others"
    )
    parser.addoption("--places", type=Path, help="a file for what the tests marked place show")


@pytest.fixture(scope="session")
def thorough(pytestconfig):
    """Whether tests with a fast form take the slow one."""
    return pytestconfig.option.all


def pytest_ignore_collect(collection_path, config):
    """Ignores files without tests for `-m gpu` or `-m compiled`: importing them takes each worker seconds."""
    folders = selection.FOLDERS.get(config.option.markexpr)
    if folders is not None and collection_path.suffix == ".py" and folder(collection_path) not in folders:
        return True


@pytest.hookimpl(tryfirst=True)  # before -m is asked
def pytest_collection_modifyitems(config, items):
    on_a_gpu, everything = torch.cuda.is_available(), config.option.all
    if not everything:
        chosen = selection.fast(items, on_a_gpu)
        config.hook.pytest_deselected(items=[*{*items}.difference(chosen)])
        items[:] = chosen
    selection.mark(items, on_a_gpu, everything, interpreted=os.environ.get("TRITON_INTERPRET") == "1")


def gpu_works():
    try:
        torch.cuda.synchronize()
        torch.rand(1, device="cuda").item()  # refused by a generator that a failed capture has left behind
    except Exception:
        return False
    return True


def kernels_of_the_cpu(config):
    """`compiled` or `interpreter`: what the environment says, else what all files that were named are for."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "interpreter"
    named = {Path(name.partition("::")[0]) for name in config.args}
    compiled = {folder(path) for path in named} <= {*selection.FOLDERS["compiled"]}
    chosen = "compiled" if compiled else "interpreter"
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
    config.pluginmanager.register(importlib.import_module("support.surroundings"))
    if config.option.places:
        config.pluginmanager.register(places.Shown(config.option.places))


def pytest_report_header():
    import triton

    from normreg.kernels import cpu

    gpu = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if gpu else f"the CPU: {cpu.KERNELS}"
    return f"torch {torch.__version__}, triton {triton.__version__}, kernels on {where}"
