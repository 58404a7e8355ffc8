"""A process that work is handed to, so that what fails in it spoils nothing after it.

A CUDA graph's capture that fails leaves torch's generator capturing and the allocator in the graph's pool; a
stray access ends the whole CUDA context. So a worker that raises, dies or falls silent is ended, and the next
call starts another.
"""

import contextlib
import multiprocessing
import os
import signal
import threading

PROCESSES = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
SECONDS_TO_END = 10


class Failed(Exception):
    """Why a call was not answered to its end."""


class Late(Failed):
    """The call took too long."""


def first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


class Worker:
    """A process with an object in it, whose generators run there. The first call starts it.

    `make` makes the object. It is a function, or a class, that the process can import by its name.
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
            self.process.start()
            theirs.close()

    def stop(self, at_once=False):
        """Lets the process end by itself, which it does where it waits for a call, or ends it."""
        if self.process is None:
            return
        self.connection.close()
        if not at_once:
            self.process.join(SECONDS_TO_END)
        self.process.kill()
        self.process.join(SECONDS_TO_END)
        self.process = self.connection = None

    def kill(self):
        """From another thread than the one that calls, whose call then fails."""
        process = self.process
        if process is not None:
            process.kill()

    def call(self, method, *arguments, limit):
        """What the object's generator yields. Failed where that takes more than `limit` seconds at once."""
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
    """A worker's stand-in without a process of its own: for what spoils nothing."""

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
