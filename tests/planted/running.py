"""Runs tests on a copy of the checkout with a bug planted in it, and what failed without the bug."""

import contextlib
import gc
import importlib
import inspect
import json
import multiprocessing
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from unittest import mock

import pytest
from support import processes

from .patches import ROOT

SECONDS = 200  # that a set of tests may take
OPTIONS = ["-x", "-q", "--all"]
# without what collects garbage at the end, at length, and what keeps notes in the copy
OPTIONS += [f"-pno:{plugin}" for plugin in ("cacheprovider", "unraisableexception", "threadexception")]
OPTIONS += ["--tb=native"]  # as Python has it, because pytest's own parses each file that it goes through


class NotFound(AssertionError):
    """Raised where tests prove nothing: they pass with the bug, or fail without it."""


@dataclass(frozen=True)
class Outcome:
    status: int  # pytest's, or minus the signal that ended it
    last: str  # test that began
    passed: int
    skipped: int
    log: str


def kernels():
    """What the tests' kernels run on: `compiled` or `interpreter`."""
    chosen = os.environ.get("NORMREG_CPU_KERNELS")
    return "compiled" if chosen == "compiled" else "interpreter"


class Watch:
    """Keeps in a file how far pytest has come, in case the process ends."""

    def __init__(self, file):
        self.file, self.last, self.passed, self.skipped = file, "", 0, 0
        self.keep()

    def pytest_runtest_logstart(self, nodeid):
        self.last = nodeid
        self.keep()

    def pytest_runtest_logreport(self, report):
        self.passed += report.passed and report.when == "call"
        self.skipped += report.skipped
        self.keep()

    def keep(self):
        self.file.seek(0)
        self.file.write(json.dumps([self.last, self.passed, self.skipped]))
        self.file.truncate()
        self.file.flush()


def _tests(arguments, log, far):
    """Runs pytest in a fork, and ends the fork."""
    status = pytest.ExitCode.INTERNAL_ERROR
    try:
        signal.alarm(SECONDS)
        _print_into(log)
        with open(far, "w") as file:
            status = pytest.main([*OPTIONS, *arguments], plugins=[Watch(file)])
    finally:
        sys.stdout.flush()
        os._exit(status)


def _print_into(log):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _serve(connection, folder, first):
    """Runs pytest on `first`, then, in a fork each, on whatever arguments are received."""
    _print_into(f"{folder}/log")
    os.chdir(folder)
    processes.leave_this_checkout(folder)
    sys.dont_write_bytecode = False
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # whatever is installed beside what the tests need
    for name in processes.PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    inspect.getmodule(sys._getframe())  # which knows from then on the files of all that is imported
    pytest.main(first)
    gc.collect()
    gc.freeze()  # forks neither look through nor copy what they share
    connection.send("ready")
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        child = os.fork()
        if not child:
            _tests(arguments, f"{folder}/log", f"{folder}/far")
        connection.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


class Server:
    """A process that has imported what tests need, without this checkout, and forks for each set of tests."""

    def __init__(self, folder, first):
        self.folder = folder
        self.connection, theirs = multiprocessing.Pipe()
        arguments = theirs, str(folder), first
        if kernels() == "interpreter":
            self.process = processes.begun(_serve, arguments)
        else:
            self.process = multiprocessing.get_context("spawn").Process(target=_serve, args=arguments)
            environment = processes.ENVIRONMENT | {"NORMREG_CPU_KERNELS": kernels()}
            with mock.patch.dict(os.environ, environment):
                del os.environ["TRITON_INTERPRET"]
                self.process.start()
        theirs.close()

    def answer(self):
        try:
            return self.connection.recv()
        except EOFError:
            raise RuntimeError(f"expected an answer, the process has ended:\n{self.log()}") from None

    def log(self):
        return (self.folder / "log").read_text()

    def run(self, arguments):
        far = self.folder / "far"
        far.write_text(json.dumps(["", 0, 0]))
        self.connection.send(arguments)
        status = self.answer()
        return Outcome(status, *json.loads(far.read_text()), self.log())

    def end(self):
        self.connection.close()
        self.process.join()


class Checkout:
    """A copy of this checkout, in which what Python has compiled for one bug is there for the next."""

    def __init__(self, folder):
        self.root = folder / "checkout"
        for room in ("kernels", "normreg", "tests", "bench"):
            shutil.copytree(
                ROOT / room, self.root / room, symlinks=True, ignore=shutil.ignore_patterns("planted")
            )
        for file in ("pyproject.toml", "LICENSE"):
            shutil.copy(ROOT / file, self.root)
        # what a bug may be in is imported with the bug, and by nobody before
        self.with_bugs = Server(self.root, ["--version"])
        self.without = Server(self.root, [*OPTIONS, "--co", "tests/conftest.py"])
        for server in (self.with_bugs, self.without):
            server.answer()  # before a bug is planted, which it must not import
        self.passed = set()  # tests without a bug

    def end(self):
        self.with_bugs.end()
        self.without.end()

    @contextlib.contextmanager
    def planted(self, patch):
        path = self.root / patch.file
        source = path.read_text()
        _write(path, patch.applied(source))
        try:
            yield
        finally:
            _write(path, source)

    def find(self, patch):
        """Raises NotFound unless a test fails with the bug and passes without; whether one was run at all."""
        with self.planted(patch):
            outcome = self.with_bugs.run(patch.arguments)
        if outcome.status == pytest.ExitCode.OK and outcome.skipped and not outcome.passed:
            return False
        # ended by a signal: an address outside the process or a broken heap is as good as a failed test
        failed = outcome.status == pytest.ExitCode.TESTS_FAILED or outcome.status < 0
        if not failed or not outcome.last or outcome.status == -signal.SIGALRM:
            raise NotFound(f"{patch.path}: expected a test to fail, {_told(outcome)}")
        if outcome.last not in self.passed:
            self.expect_passed(patch, outcome.last)
        return True

    def expect_passed(self, patch, test):
        outcome = self.without.run([test])
        if outcome.status != pytest.ExitCode.OK or not outcome.passed:
            raise NotFound(f"{patch.path}: expected {test} to pass without the bug, {_told(outcome)}")
        self.passed.add(test)


def _write(path, text):
    path.write_text(text)
    # Python tells a file from another by its size and by the second in which it was written
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()


def _told(outcome):
    if outcome.status < 0:
        what = f"signal {-outcome.status} ({SECONDS} s are over if it is {signal.SIGALRM:d})"
    else:
        what = {code.value: code.name for code in pytest.ExitCode}.get(outcome.status, outcome.status)
    return f"got {what}, last began {outcome.last or 'no test'}:\n{outcome.log}"
