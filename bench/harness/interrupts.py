"""Ctrl-C: one line on stderr and exit status 130, without a process or a traceback left behind."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import resource_tracker

STATUS = 130  # of a process that Ctrl-C has ended
ALIKE_S = 2  # the terminal interrupts a process that its parent also interrupts; the second does not count
SECONDS_TO_END = 60  # for what a part writes at its end
KEPT = []  # files that are written, in their order
_last = -ALIKE_S


def install():
    """Makes Ctrl-C end this process so. Where it was started with Ctrl-C ignored, it still ignores that."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    sys.excepthook = _report


def _interrupt(*_):
    global _last
    if time.monotonic() - _last > ALIKE_S:
        _last = time.monotonic()
        if _torch_is_half_imported():
            _say()
            os._exit(STATUS)
        raise KeyboardInterrupt


def _torch_is_half_imported():
    """Whether C++ code may be up the stack that lets no exception pass: it would abort the process."""
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    return getattr(spec, "_initializing", False)


def _say():
    if os.environ.get("RANK", "0") == "0":  # of several ranks one says it
        files = ", ".join(dict.fromkeys(map(str, KEPT)))
        what = f"kept: {files}" if files else "nothing was written"
        print(f"interrupted; {what}", file=sys.stderr, flush=True)


def _report(kind, error, traceback):
    # what a library's import makes of it is another error
    if not issubclass(kind, KeyboardInterrupt) and time.monotonic() - _last > ALIKE_S:
        sys.__excepthook__(kind, error, traceback)
        return
    for process in multiprocessing.active_children():
        process.kill()
    _say()
    sys.exit(STATUS)


@contextlib.contextmanager
def shielded():
    """Processes that are started meanwhile do not hear of Ctrl-C: whoever starts them ends them."""
    resource_tracker.ensure_running()  # which would let it through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(command):
    """Exit status of a command of ours, which says by itself that it was interrupted."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
        process.kill()
        process.wait()
        return STATUS
