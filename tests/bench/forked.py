"""Processes of the benchmark, forked from one that has torch imported, which saves seconds."""

import contextlib
import multiprocessing
from pathlib import Path
from unittest import mock

import torch
from support.processes import begun, exit_status

from bench.harness import worker

ROOT = Path(__file__).parents[2]
COMMAND = """
import runpy, sys
sys.argv = ["python -m bench", *{arguments}]
runpy.run_module("bench", run_name="__main__")
"""


def bench(log, *arguments):
    """Exit status and output of `python -m bench`, for interpreted parts and those that launch nothing."""
    status = exit_status(COMMAND.format(arguments=arguments), ROOT, log)
    return status, log.read_text()


@contextlib.contextmanager
def workers():
    """Forks workers instead of spawning them, except beside a GPU: CUDA does not survive a fork."""
    if torch.cuda.is_available():
        yield
        return
    begun(bool, ()).join()  # with which the server has begun, in its own environment
    with mock.patch.object(worker, "PROCESSES", multiprocessing.get_context("forkserver")):
        yield
