"""Notes of bugs that were found, so that CI looks for them again only after a change."""

import ast
import functools
import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path, PurePath

import pytest

from .patches import FOLDER, ROOT
from .running import kernels

VARIABLE = "NORMREG_PLANTED_CACHE"  # names the folder of the notes; there are none without it


def find(patch, search):
    """Fails unless `search` finds the bug, or skips the test, which is never a reason to pass."""
    note = _note(patch)
    if note and note.exists():
        pytest.skip("found before, and nothing that it reaches has changed since")
    if not search(patch):
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
    """Files whose changes may decide whether the bug is found."""
    tests = imported([ROOT / "tests/conftest.py", *patch.test_files])
    return sorted({patch.path, ROOT / patch.file, ROOT / "pyproject.toml", *FOLDER.glob("*.py"), *tests})


def imported(files):
    """These, and what they import of tests/ and bench/, or name in a string, and so on."""
    seen, left = set(), [*files]
    while left:
        file = left.pop()
        if file not in seen:
            seen.add(file)
            left += _imported_by(file, file.read_text())
    return seen


@functools.cache
def _imported_by(file, source):
    modules = set()  # paths from the root, without .py
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {PurePath(*alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(ROOT).parents[node.level - 1] if node.level else PurePath()
            module = package.joinpath(*(node.module or "").split("."))
            modules |= {module, *(module / alias.name for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = node.value.removesuffix(".py").split(".")
            modules |= {PurePath(*parts)} if all(map(str.isidentifier, parts)) else set()
    modules |= {package for module in modules for package in module.parents if package.parts}
    # tests/ and the folder of a file of tests are where its imports are looked for, too
    folders = {PurePath("tests"), file.relative_to(ROOT).parent}
    modules |= {folder / module for folder in folders for module in modules}
    here = (ROOT / module for module in modules if module.parts[0] in ("bench", "tests"))
    paths = (path for module in here for path in (module.with_suffix(".py"), module / "__init__.py"))
    return [path for path in paths if path.exists()]
