"""Processes for tests that begin with torch imported and nothing of this checkout.

They have no GPU but Triton's interpreter, whatever the tests' process has: NCCL refuses two ranks on one GPU,
and what these processes show does not depend on the device.
"""

import contextlib
import multiprocessing
import os
import sys
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

TESTS = Path(__file__).resolve().parents[1]
# the last is what triton imports at its first launch
PRELOADED = [
    "torch._dynamo",
    "torch.distributed.fsdp",
    "triton",
    "numpy",
    "pytest",
    "triton.experimental.gluon",
]
# of the server that they are forked from: triton reads it on import, torch before it first looks for a GPU
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
ENVIRONMENT |= {"NORMREG_CPU_KERNELS": "interpreter"}


def begun(target, arguments):
    """A process that has begun to call the target."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=target, args=arguments)
    with mock.patch.dict(os.environ, ENVIRONMENT), _server_of_the_parent():
        process.start()
    return process


def _server_of_the_parent():
    """Keeps a process that comes from the server from starting another: it has the server's address."""
    server = forkserver._forkserver
    if multiprocessing.parent_process() is None or server._forkserver_address is None:
        return contextlib.nullcontext()
    return mock.patch.object(server, "ensure_running")


def leave_this_checkout(folder):
    """Makes later imports take the checkout `folder` instead of the one that this file is in."""
    here = ("", str(TESTS), str(TESTS.parent))
    others = [path for path in sys.path if path not in here and TESTS not in Path(path).parents]
    sys.path[:] = [folder, *others]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("support", "planted")]:
        del sys.modules[name]


def _run(source, folder, log):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    leave_this_checkout(folder)
    exec(source, {"__name__": "__main__"})


def exit_status(source, folder, log):
    """Exit status of `python -c source` in the checkout `folder`, or minus the signal that ended it.

    The process prints into the file `log`.
    """
    process = begun(_run, (source, str(folder), str(log)))
    process.join()
    return process.exitcode
