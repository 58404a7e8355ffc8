"""Bugs that were found are not looked for again until something that they reach has changed."""

import pytest
from planted import notes, patches
from planted.patches import Patch
from planted.running import NotFound


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The root of a project with a patch, where notes are taken in `notes`."""
    monkeypatch.setattr(patches, "ROOT", tmp_path)
    monkeypatch.setattr(notes, "ROOT", tmp_path)
    monkeypatch.setenv(notes.VARIABLE, str(tmp_path / "notes"))
    files = {
        "kernels/dropout.py": "import torch\n",
        "kernels/another.py": "",
        "tests/kernels/test_dropout.py": (
            "from support import reference\nfrom worlds import check\ncheck('ranks_dropout')\n"
        ),
        "tests/kernels/test_another.py": "import unused\n",
        "tests/kernels/unused.py": "",
        "tests/kernels/worlds.py": f"'{'A docstring. ' * 99}'\ndef check(module): ...\n",
        "tests/kernels/ranks_dropout.py": "",
        "tests/support/__init__.py": "",
        "tests/support/reference.py": "from bench.meter import Meter\n",
        "tests/support/surroundings.py": "",
        "tests/conftest.py": "import importlib\nimportlib.import_module('support.surroundings')\n",
        "bench/meter.py": "import bench.lab.driver\n",
        "bench/lab/__init__.py": "",
        "bench/lab/driver.py": "from . import ptx\nfrom .. import tables\n'demo'\n",
        "bench/lab/ptx.py": "",
        "bench/tables.py": "",
        "bench/demo.py": "",
        "pyproject.toml": "",
        "a.patch": "",
    }
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    return tmp_path


def bug(project):
    return Patch(
        project / "a.patch", "kernels/dropout.py", ("kernels/test_dropout.py", "-k", "x"), (("a", "b"),)
    )


def not_found(patch):
    raise NotFound


def not_searched(patch):
    return False


def is_run_again(patch):
    searched = []
    try:
        notes.find(patch, lambda patch: not searched.append(patch))
    except pytest.skip.Exception:
        assert not searched
        return False
    assert searched == [patch]
    return True


REACHED = [
    "a.patch",
    "kernels/dropout.py",
    "tests/kernels/test_dropout.py",
    "tests/support/reference.py",
    "tests/kernels/worlds.py",
    "tests/kernels/ranks_dropout.py",
    "tests/conftest.py",
    "tests/support/surroundings.py",
    "bench/meter.py",
    "bench/lab/__init__.py",
    "bench/lab/driver.py",
    "bench/lab/ptx.py",
    "bench/tables.py",
    "pyproject.toml",
]


@pytest.mark.parametrize("file", REACHED)
def test_a_bug_is_found_again_after_a_change(project, file):
    patch = bug(project)
    assert [is_run_again(patch), is_run_again(patch)] == [True, False]
    with open(project / file, "a") as changed:
        changed.write("# changed\n")
    assert [is_run_again(patch), is_run_again(patch)] == [True, False]


def test_changes_that_a_bug_does_not_reach(project):
    patch = bug(project)
    assert is_run_again(patch)
    for file in (
        "kernels/another.py",
        "tests/kernels/test_another.py",
        "tests/kernels/unused.py",
        "bench/demo.py",
    ):
        (project / file).write_text("# changed\n")
    assert not is_run_again(patch)


@pytest.mark.parametrize("package", ["torch", "triton", "numpy", "pytest", "python"])
def test_a_bug_is_found_again_in_another_version(project, monkeypatch, package):
    patch = bug(project)
    assert [is_run_again(patch), is_run_again(patch)] == [True, False]
    version = notes.version
    monkeypatch.setattr(notes, "version", lambda name: "0.1" if name == package else version(name))
    if package == "python":
        monkeypatch.setattr(notes.platform, "python_version", lambda: "3.99")
    assert [is_run_again(patch), is_run_again(patch)] == [True, False]


def test_a_bug_is_found_again_by_other_kernels(project, monkeypatch):
    patch = bug(project)
    monkeypatch.setenv("NORMREG_CPU_KERNELS", "interpreter")
    assert is_run_again(patch)
    monkeypatch.setenv("NORMREG_CPU_KERNELS", "compiled")
    assert is_run_again(patch)


def test_what_is_not_noted(project, monkeypatch):
    patch = bug(project)
    with pytest.raises(NotFound):
        notes.find(patch, not_found)
    with pytest.raises(pytest.skip.Exception, match="not for kernels by interpreter"):
        notes.find(patch, not_searched)
    assert not (project / "notes").exists()
    monkeypatch.delenv(notes.VARIABLE)
    assert [is_run_again(patch), is_run_again(patch)] == [True, True]
    assert not (project / "notes").exists()
