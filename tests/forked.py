"""The benchmark's workers, begun as tests' other processes are: forked, with torch imported.

`bench.worker` spawns them, since CUDA does not survive a fork, and each imports torch for seconds;
`test_worker.py` has those, and a machine with a GPU all.
"""

import contextlib
import multiprocessing
from unittest import mock

import torch
from processes import begun

from bench import worker


@contextlib.contextmanager
def workers():
    if torch.cuda.is_available():
        yield
        return
    begun(bool, ()).join()  # with which the server has begun, in its own environment
    with mock.patch.object(worker, "PROCESSES", multiprocessing.get_context("forkserver")):
        yield
