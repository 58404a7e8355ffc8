"""Worlds of ranks on this machine's CPU, connected by gloo, which run checks one after the other.

Ranks begin with the first check in a world of that size, and stay until one fails or the tests end. Kernels
run in the interpreter, beside a GPU, too.
"""

import atexit
import datetime
import importlib
import multiprocessing
import os
import sys
import tempfile
import traceback

from support.processes import begun

TIMEOUT = 30  # seconds that a rank waits for the others
begun_worlds = {}  # by size


class World:
    """Ranks of a process group, and the connection to each."""

    def __init__(self, size):
        self.folder = tempfile.TemporaryDirectory()
        self.processes, self.connections = [], []
        for rank in range(size):
            ours, theirs = multiprocessing.Pipe()
            arguments = theirs, rank, size, self.folder.name, sys.path
            self.processes.append(begun(_rank, arguments))
            self.connections.append(ours)
            theirs.close()

    def answer(self, rank):
        """(whether the rank goes on, what went wrong)"""
        try:
            if self.connections[rank].poll(TIMEOUT * 4):
                return self.connections[rank].recv()
        except EOFError:
            return False, "the rank died"
        return False, f"no answer in {TIMEOUT * 4} s"

    def end(self):
        for process, connection in zip(self.processes, self.connections, strict=True):
            connection.close()
            process.kill()
            process.join()
        self.folder.cleanup()


def check(module, name, size):
    """Runs the function (rank, size) of the module on every rank of a world."""
    if size not in begun_worlds:
        begun_worlds[size] = World(size)
    world = begun_worlds[size]
    for connection in world.connections:
        connection.send((module, name))
    answers = [world.answer(rank) for rank in range(size)]
    if not all(goes_on for goes_on, _ in answers):
        begun_worlds.pop(size).end()
    failures = [f"rank {rank}: {what}" for rank, (_, what) in enumerate(answers) if what]
    assert not failures, "\n".join(failures)


@atexit.register
def end_all():
    while begun_worlds:
        begun_worlds.popitem()[1].end()


def _rank(connection, rank, size, folder, path):
    sys.path[:] = path
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    from bench.lab import interpreter
    from normreg.kernels import tiling

    interpreter.speed_up()
    tiling.hardware.INTERPRETER_TILE_SCALE = 1
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )
    goes_on = True
    while goes_on:
        try:
            module, name = connection.recv()
        except EOFError:  # the tests have ended
            break
        torch.manual_seed(0)
        goes_on, what = _result(vars(importlib.import_module(module))[name], rank, size)
        connection.send((goes_on, what))
    os._exit(0)  # whoever waits for this rank is told so at once


def _result(function, rank, size):
    """(whether the rank goes on, what went wrong)"""
    try:
        function(rank, size)
    except SystemExit as end:  # of a rank that is to die
        return False, "" if str(end) == "as intended" else str(end)
    except BaseException:
        return False, "".join(traceback.format_exc().splitlines(keepends=True)[-12:])
    return True, ""
