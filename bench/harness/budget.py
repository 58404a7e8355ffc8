"""A budget of seconds for a loop, whose tasks run in this process or in several."""

import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from bench.harness import interrupts
from bench.harness.progress import progress


class Budget:
    """Seconds to work within: nothing begins that would end later, were it as slow as the slowest so far."""

    def __init__(self, seconds=None):
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.left_out = []

    def end_in(self, seconds):
        self.deadline = time.monotonic() + seconds

    def left(self):
        """Seconds left; infinite without a limit."""
        return math.inf if self.deadline is None else self.deadline - time.monotonic()

    def within(self, items, describe=str, ended=False):
        """Yields items as long as there is time, with a progress bar; names the others in `left_out`.

        ended: the caller ends an item when the time is over, so one may begin up to then.
        """
        items, slowest = list(items), 0.0
        with progress(len(items)) as advance:
            for number, item in enumerate(items):
                begin = time.monotonic()
                if self.deadline is not None and begin + slowest * (not ended) > self.deadline:
                    self.left_out += [describe(item) for item in items[number:]]
                    return
                advance(describe(item))
                yield item
                slowest = max(slowest, time.monotonic() - begin)
            advance("done")


def in_processes(budget, tasks, function, *arguments, processes=None, describe=str):
    """Yields what `function(task, *arguments)` returns for each task, in the order of the tasks.

    processes: number of processes, by default that of the cores; with 1, tasks run in this process.

    Threads would not do, because most of a compilation holds Python's lock, nor forks, because of torch.
    """
    if processes == 1 or budget.left() <= 0:  # without time none begins, and all are named
        for task in budget.within(tasks, describe):
            yield function(task, *arguments)
        return
    processes = processes or len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        try:
            with interrupts.shielded():
                pending = [(task, pool.submit(function, task, *arguments)) for task in tasks]
            for _, future in budget.within(pending, lambda item: describe(item[0])):
                yield future.result()
        except BaseException:  # nobody waits for the tasks that are being done
            for process in [*(pool._processes or {}).values()]:
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
