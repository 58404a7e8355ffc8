"""A test that spoils the GPU is reported, and no other test is lost: on a tiny suite whose GPU is made up."""

import os
import re
import shutil
import subprocess
import sys

import programs
import pytest


@pytest.fixture
def run(tmp_path):
    suites = programs.FOLDER / "suites"
    shutil.copy(suites / "watched_conftest.py", tmp_path / "conftest.py")
    shutil.copy(suites / "tiny.py", tmp_path / "test_tiny.py")

    def run(*options):
        environment = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        environment["PYTHONPATH"] = str(programs.TESTS)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=found.xml"]
        done = subprocess.run(
            [*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return done, (tmp_path / "found.xml").read_text()

    return run


# worksteal as `bench gpu` runs tests
@pytest.mark.parametrize("dist", [pytest.param("load", marks=pytest.mark.slow), "worksteal"])
def test_another_worker_takes_over(run, dist):
    pytest.importorskip("xdist")
    done, found = run("-n", "2", "--dist", dist)
    assert "24 passed" in done.stdout, done.stdout
    assert "RuntimeError: an illegal address" in done.stdout
    assert "It does not work after this failure: the process ends." in done.stdout
    assert "wrong, and the GPU works" in done.stdout
    assert "went on" not in done.stdout
    assert done.stdout.count("node down") == 1
    assert {*re.findall(r"crashed while running '(.*?)'", done.stdout)} == {"test_tiny.py::test_spoils"}
    assert "an illegal address" in found


def test_without_workers_the_run_ends(run):
    done, found = run("-p", "no:xdist")
    assert done.returncode == 3
    assert "the GPU does not work after test_tiny.py::test_spoils: run the tests with -n" in done.stdout
    assert "2 failed, 12 passed" in done.stdout
    assert "an illegal address" in found
