"""Tasks, an experiment with a seed each, in a module that spawned processes can import."""

import concurrent.futures
import multiprocessing
import time

import torch

from . import by_name
from .experiment import rounded


def prepare():
    torch.set_num_threads(1)


def run_task(name, seed, quick):
    begin = time.monotonic()
    found = rounded(by_name(name).run(seed, quick))
    return name, seed, found, time.monotonic() - begin


def done(tasks, workers):
    """What the tasks return, in the order in which they end."""
    if workers == 1:
        prepare()
        yield from (run_task(*task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, prepare) as pool:
        futures = [pool.submit(run_task, *task) for task in tasks]
        yield from (future.result() for future in concurrent.futures.as_completed(futures))
