"""Runs a planted bug's tests in a process that has imported torch already, and nothing of this checkout."""

import multiprocessing
import os
import sys


def _run(folder, arguments, log):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    tests = os.path.dirname(os.path.abspath(__file__))
    # the paths of the checkout that this file is in must not find what the mutated one has
    sys.path[:] = [folder, *(path for path in sys.path if path not in ("", tests, os.path.dirname(tests)))]
    sys.modules.pop("mutated", None)

    import pytest

    os._exit(pytest.main(arguments))


def exit_status(folder, arguments, log):
    """pytest's, or minus the signal that ended it. What it prints is in `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "triton", "numpy", "pytest"])
    process = context.Process(target=_run, args=(str(folder), arguments, str(log)))
    process.start()
    process.join()
    return process.exitcode
