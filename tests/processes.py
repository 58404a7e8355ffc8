"""Processes of their own for tests: they begin with torch imported, and nothing of this checkout."""

import multiprocessing
import os
import sys

PRELOADED = ["torch._dynamo", "torch.distributed.fsdp", "triton", "numpy", "pytest"]


def _run(source, folder, log):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    tests = os.path.dirname(os.path.abspath(__file__))
    # of another checkout: the paths of the one that this file is in must not find what that one has
    sys.path[:] = [folder, *(path for path in sys.path if path not in ("", tests, os.path.dirname(tests)))]
    sys.modules.pop("processes", None)
    exec(source, {"__name__": "__main__"})


def exit_status(source, folder, log):
    """What `python -c source` in the checkout `folder` ends with, or minus the signal that ended it.

    The process prints into the file `log`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(source, str(folder), str(log)))
    process.start()
    process.join()
    return process.exitcode
