"""Processes of the benchmark, begun as others of tests: forked, with torch imported, which saves seconds."""

import contextlib
import multiprocessing
from pathlib import Path
from unittest import mock

import torch
from processes import begun, exit_status

from bench.perf import worker

ROOT = Path(__file__).parent.parent
COMMAND = """
import runpy, sys
sys.argv = ["python -m bench", *{arguments}]
runpy.run_module("bench", run_name="__main__")
"""


def bench(log, *arguments):
    """Exit status and output of `python -m bench`, of what the interpreter runs or nothing does."""
    status = exit_status(COMMAND.format(arguments=arguments), ROOT, log)
    return status, log.read_text()


@contextlib.contextmanager
def workers():
    """Workers are not spawned meanwhile, but where there is a GPU: CUDA does not survive a fork."""
    if torch.cuda.is_available():
        yield
        return
    begun(bool, ()).join()  # with which the server has begun, in its own environment
    with mock.patch.object(worker, "PROCESSES", multiprocessing.get_context("forkserver")):
        yield
