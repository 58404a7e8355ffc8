"""Processes that each do one thing after another, and are replaced where one dies, hangs or is spoiled."""

import multiprocessing
import time
from multiprocessing.connection import wait

CONTEXT = multiprocessing.get_context("spawn")  # because a GPU that was touched cannot be forked


def _serve(connection, do):
    while (task := connection.recv()) is not None:
        connection.send(do(*task))


class Worker:
    def __init__(self, do):
        self.connection, other = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_serve, args=(other, do), daemon=True)
        self.process.start()
        other.close()  # so that its end is seen when the process dies
        self.task = None

    def begin(self, task, limit_s):
        self.task, self.deadline = task, time.monotonic() + limit_s
        self.connection.send(task)

    def result(self):
        """The record of its task, or one that says how the process ended."""
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            return dict(
                ok=False, spoiled=True, error=f"the process ended with status {self.process.exitcode}"
            )

    def end(self):
        self.process.kill()
        self.process.join()
        self.connection.close()


def results(tasks, do, count, limit_s, alone=()):
    """(task, do(*task)) of each task as it is done, by `count` processes side by side.

    A task is a tuple, `do` a function of a module that returns a dictionary. One with `spoiled` ends its
    process, and another takes its place. Tasks that begin with one of `alone` have a process of their own.
    """
    idle, busy = [], []
    try:
        for task in tasks:
            while len(busy) == count:
                yield from _finished(idle, busy, limit_s, alone)
            if task[0] in alone and idle:
                idle.pop().end()
            worker = idle.pop() if idle and task[0] not in alone else Worker(do)
            worker.begin(task, limit_s)
            busy.append(worker)
        while busy:
            yield from _finished(idle, busy, limit_s, alone)
    finally:
        for worker in (*idle, *busy):
            worker.end()


def _finished(idle, busy, limit_s, alone):
    first = min(worker.deadline for worker in busy)
    ready = wait([worker.connection for worker in busy], max(0.0, first - time.monotonic()))
    for worker in list(busy):
        if worker.connection in ready:
            record = worker.result()
        elif worker.deadline <= time.monotonic():
            record = dict(ok=False, spoiled=True, error=f"no result within {limit_s:g} s")
        else:
            continue
        busy.remove(worker)
        if record.get("spoiled") or worker.task[0] in alone:
            worker.end()
        else:
            idle.append(worker)
        yield worker.task, record
