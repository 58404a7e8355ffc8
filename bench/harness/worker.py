"""A process that does work for this one, and is replaced once something fails in it.

A failed capture of a CUDA graph leaves torch's generator capturing and the allocator in the graph's pool; a
stray access ends the whole CUDA context. So a worker that raises, dies or falls silent is ended, and the next
call starts another.
"""

import contextlib
import multiprocessing
import os
import signal
import threading

from bench.harness import interrupts

PROCESSES = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
SECONDS_TO_END = 10


class Failed(Exception):
    """A call raised, or its process died; the message says which."""


class Late(Failed):
    """The call took too long."""


def first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


class Worker:
    """A process that holds an object and runs its generators; the first call starts it.

    make: the function or class that makes the object, which the process imports by its name.
    """

    def __init__(self, make):
        self.make = make
        self.process = self.connection = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        if self.process is None:
            self.connection, theirs = PROCESSES.Pipe()
            self.process = PROCESSES.Process(target=_serve, args=(theirs, self.make))
            with interrupts.shielded():
                self.process.start()
            theirs.close()

    def stop(self, at_once=False):
        """Closes the connection, at which an idle process ends; kills it where it does not, or `at_once`."""
        if self.process is None:
            return
        self.connection.close()
        if not at_once:
            self.process.join(SECONDS_TO_END)
        self.process.kill()
        self.process.join(SECONDS_TO_END)
        self.process = self.connection = None

    def kill(self):
        """Kills the process from another thread than the one that calls, whose call then fails."""
        process = self.process
        if process is not None:
            process.kill()

    def call(self, method, *arguments, limit):
        """Yields what the object's method yields; Late where an item takes more than `limit` seconds."""
        self.start()
        answered = False
        try:
            self.connection.send((method, arguments))
            while not answered:
                if not self.connection.poll(limit):
                    raise Late(f"no answer in {limit:.0f} s")
                kind, value = self.connection.recv()
                if kind == "raised":
                    raise Failed(value)
                answered = kind == "done"
                if not answered:
                    yield value
        except (EOFError, ConnectionError):
            self.process.join(SECONDS_TO_END)
            raise Failed(f"the process died: {_how(self.process.exitcode)}") from None
        finally:
            if not answered:
                self.stop(at_once=True)


class Here:
    """A worker in this process, for work that spoils nothing when it fails."""

    def __init__(self, make):
        self.make, self.served = make, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.served = None

    def start(self):
        self.served = self.served or self.make()

    def call(self, method, *arguments, limit):
        try:
            self.start()
            yield from getattr(self.served, method)(*arguments)
        except Exception as error:
            self.served = None
            raise Failed(first_line(error)) from error


def _how(exitcode):
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _serve(connection, make):
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        served = make()
        while (call := _next_call(connection)) is not None:
            method, arguments = call
            for value in getattr(served, method)(*arguments):
                connection.send(("value", value))
            connection.send(("done", None))
    except Exception as error:
        connection.send(("raised", first_line(error)))


def _next_call(connection):
    try:
        return connection.recv()
    except EOFError:
        return None
