"""Worlds of ranks on this machine's CPU, connected by gloo, which run checks one after the other.

Kernels run in the interpreter, beside a GPU, too.
"""

import datetime
import importlib
import os
import sys
import traceback

from processes import begun

TIMEOUT = 30  # seconds that a rank waits for the others


def _rank(module, names, rank, size, folder, path):
    sys.path[:] = path
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    from bench import interpreter
    from normreg.kernels import tiling

    interpreter.speed_up()
    tiling.INTERPRETER_TILE_SCALE = 1
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )  # fmt: skip
    functions = vars(importlib.import_module(module))
    result = dict.fromkeys(names, "not reached")
    for name in names:
        torch.manual_seed(0)
        try:
            functions[name](rank, size)
            result[name] = ""
        except SystemExit as end:  # of a rank that is to die
            result[name] = "" if str(end) == "as intended" else str(end)
            break
        except BaseException:
            result[name] = "".join(traceback.format_exc().splitlines(keepends=True)[-12:])
            break
    with open(f"{folder}/rank{rank}", "w") as file:
        file.write(repr(result))
    os._exit(0)  # whoever waits for this rank is told so at once


def check(module, names, size, folder):
    """Runs functions (rank, size) of the module on every rank, each until the first that fails anywhere."""
    arguments = [(module, names, rank, size, str(folder), sys.path) for rank in range(size)]
    processes = [begun(_rank, of_rank) for of_rank in arguments]
    for process in processes:
        process.join(TIMEOUT * 4)
        if process.exitcode is None:
            process.kill()
    failures = ""
    for rank in range(size):
        file = folder / f"rank{rank}"
        results = eval(file.read_text()) if file.exists() else dict.fromkeys(names, "the rank died")
        failures += "".join(f"{name}, rank {rank}: {what}\n" for name, what in results.items() if what)
    assert failures == "", failures
