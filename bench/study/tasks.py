"""A task: one experiment with one seed, in a module that spawned processes can import."""

import time

import torch

from . import by_name
from .experiment import rounded


def run_task(task):
    """What an experiment gives with a seed, and the seconds it takes; `task` is (name, seed, quick)."""
    name, seed, quick = task
    torch.set_num_threads(1)  # results depend on nothing but the seed
    begin = time.monotonic()
    found = rounded(by_name(name).run(seed, quick))
    return found, time.monotonic() - begin
