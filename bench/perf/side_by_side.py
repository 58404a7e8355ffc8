"""Work side by side in processes, of which one that is spoiled is replaced."""

import collections
import contextlib
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from bench.perf.worker import SECONDS_TO_END, Failed, Worker


class Doing:
    """What a worker's process does: one thing after another."""

    def do(self, function, task):
        yield function(*task)


def results(tasks, do, count, limit_s, alone=()):
    """(task, do(*task)) of each task as it is done, by `count` processes side by side.

    A task is a tuple, `do` a function of a module that returns a dictionary. One with `spoiled` ends its
    process, and another takes its place. Tasks that begin with one of `alone` have a process of their own.
    """
    waiting, done, workers = queue.Queue(), queue.Queue(), []

    def serve():
        with Worker(Doing) as worker:
            workers.append(worker)
            while (task := waiting.get()) is not None:
                done.put((task, _result(worker, do, task, limit_s, task[0] in alone)))

    threads, busy = [], 0
    try:
        for task in tasks:
            if busy == count:
                yield done.get()
                busy -= 1
            elif len(threads) < count:
                threads.append(threading.Thread(target=serve, daemon=True))
                threads[-1].start()
            waiting.put(task)
            busy += 1
        while busy:
            yield done.get()
            busy -= 1
    finally:
        waiting.queue.clear()
        for _ in threads:
            waiting.put(None)
        if busy:  # nobody waits for what is being done
            for worker in workers:
                worker.kill()
        for thread in threads:
            thread.join(SECONDS_TO_END)


def _result(worker, do, task, limit_s, alone):
    if alone:
        worker.stop(at_once=True)
    try:
        (record,) = worker.call("do", do, task, limit=limit_s)
    except Failed as failure:
        return dict(ok=False, spoiled=True, error=str(failure))
    if alone or record.get("spoiled"):
        worker.stop(at_once=True)
    return record


def together(make, calls, processes, seconds):
    """Makes calls of (method, *arguments) in several workers, for what they leave behind, as long as time is.

    Whatever fails or is late is left.
    """
    waiting, end = collections.deque(calls), time.monotonic() + seconds

    def serve():
        with Worker(make) as worker:
            while waiting and (left := end - time.monotonic()) > 0:
                with contextlib.suppress(Failed, IndexError):  # another may have taken the last
                    collections.deque(worker.call(*waiting.popleft(), limit=left), maxlen=0)

    with ThreadPoolExecutor(processes) as threads:
        for served in [threads.submit(serve) for _ in range(processes)]:
            served.result()
