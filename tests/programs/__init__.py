"""Programs that tests run in processes of their own, a file each, by path and with arguments."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

from support import processes

FOLDER = Path(__file__).parent
TESTS, ROOT = FOLDER.parent, FOLDER.parent.parent


def path_of(name):
    return FOLDER / f"{name}.py"


def _run(path, arguments, folder, log):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    # bench and normreg are those of the folder, which may be a copy of this checkout
    others = [path for path in sys.path if path not in ("", str(TESTS), str(ROOT))]
    sys.path[:] = [folder, str(TESTS), *others]
    sys.argv[:] = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def exit_status(name, log, *arguments, folder=ROOT):
    """Exit status of a program in a process that interprets kernels, or minus the signal that ended it.

    It runs in this checkout or the copy `folder`, and prints into the file `log`.
    """
    process = processes.begun(_run, (str(path_of(name)), list(map(str, arguments)), str(folder), str(log)))
    process.join()
    return process.exitcode


def interpreted(name, log, *arguments):
    """Output of a program in such a process; raises where the program fails."""
    status = exit_status(name, log, *arguments)
    assert status == 0, log.read_text()
    return log.read_text()


def compiling(name, *arguments, **environment):
    """The completed process of a program whose kernels are not interpreted; raises where it fails."""
    chosen = "TRITON_INTERPRET", "NORMREG_CPU_KERNELS"
    inherited = {key: value for key, value in os.environ.items() if key not in chosen}
    environment = inherited | dict(PYTHONPATH=os.pathsep.join((str(ROOT), str(TESTS)))) | environment
    command = [sys.executable, "-W", "ignore", str(path_of(name)), *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def python(source, **environment):
    """The completed process of `source`, for which neither variable is set unless `environment` says so."""
    variables = "TRITON_INTERPRET", "NORMREG_CPU_KERNELS"
    inherited = {name: value for name, value in os.environ.items() if name not in variables}
    command = [sys.executable, "-c", source]
    return subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True)
