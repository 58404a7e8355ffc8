"""Several workers at a time, each replaced once something fails in it."""

import collections
import contextlib
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from bench.harness.worker import SECONDS_TO_END, Failed, Worker


class Doing:
    """The object in a worker's process: calls one function after another."""

    def do(self, function, task):
        yield function(*task)


def results(tasks, do, count, limit_s, alone=()):
    """Yields (task, do(*task)) of each task as it is done, by `count` processes.

    A task is a tuple; `do` is a function of a module, and returns a dictionary. Where that has a true
    `spoiled`, another process takes the place of its own. A task whose first item is in `alone` has a
    process to itself.
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
        if busy:  # the caller gave up on the tasks that are being done
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
    """Makes calls of (method, *arguments) in several workers for their effects, for so many seconds.

    Calls that fail or are late are skipped.
    """
    waiting, end, workers = collections.deque(calls), time.monotonic() + seconds, []

    def serve():
        with Worker(make) as worker:
            workers.append(worker)
            while waiting and (left := end - time.monotonic()) > 0:
                with contextlib.suppress(Failed, IndexError):  # another thread may have taken the last call
                    collections.deque(worker.call(*waiting.popleft(), limit=left), maxlen=0)

    with ThreadPoolExecutor(processes) as threads:
        try:
            for served in [threads.submit(serve) for _ in range(processes)]:
                served.result()
        except BaseException:  # nobody waits for the calls that are being made
            waiting.clear()
            for worker in workers:
                worker.kill()
            raise
