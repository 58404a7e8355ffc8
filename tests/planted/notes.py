"""Notes of bugs that were found, so that CI looks for them again only after a change."""

import ast
import functools
import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

import pytest

from .patches import FOLDER, ROOT
from .running import kernels

VARIABLE = "NORMREG_PLANTED_CACHE"  # names the folder of the notes; there are none without it


def find(patch, checkout):
    """Fails unless the bug is found, or skips the test, which is never a reason to pass."""
    note = _note(patch)
    if note and note.exists():
        pytest.skip("found before, and nothing that it reaches has changed since")
    if not checkout.find(patch):
        pytest.skip(f"its tests are not for kernels by {kernels()}")
    if note:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{patch.path}\n")


def _note(patch):
    """The file that says that the bug was found, or None where no notes are taken."""
    if not os.environ.get(VARIABLE):
        return None
    text = hashlib.sha256(repr([kernels(), *versions()]).encode())
    for file in reached(patch):
        text.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return Path(os.environ[VARIABLE]) / text.hexdigest()


def versions():
    packages = ("torch", "triton", "numpy", "pytest")
    return [platform.python_version(), *(f"{name} {version(name)}" for name in packages)]


def reached(patch):
    """The files of which a change may decide whether the bug is found."""
    tests = imported([ROOT / "tests/conftest.py", *patch.test_files])
    return sorted({patch.path, ROOT / patch.file, ROOT / "pyproject.toml", *FOLDER.glob("*.py"), *tests})


def imported(files):
    """These, the files of tests/ and bench/ that they name, in imports or as words, and so on."""
    known = {}
    for file in (file for room in ("tests", "bench") for file in (ROOT / room).rglob("*.py")):
        module = file.parent.name if file.stem == "__init__" else file.stem
        known.setdefault(module, []).append(file)
    seen, left = set(), [*files]
    while left:
        file = left.pop()
        if file not in seen:
            seen.add(file)
            left += [other for name in _names(file.read_text()) for other in known.get(name, ())]
    return seen


@functools.cache
def _names(source):
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            paths = getattr(node, "module", None) or "", *(alias.name for alias in node.names)
            names |= {name for path in paths for name in path.split(".")}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value.removesuffix(".py"))
    return names
