"""What conftest.py and pyproject.toml decide for all tests: which run where, which warnings pass."""

import ast
import importlib
import os
import sys
import types
import warnings
from pathlib import Path

import conftest
import pytest
import torch
from support.processes import exit_status
from support.selection import COMPILED_OF_EACH, FOLDERS, folder

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests").rglob("test_*.py"))
DTYPES = ("float16", "bfloat16", "float32", "float64")


def output_of_pytest(log, *arguments):
    source = f"import pytest; raise SystemExit(pytest.main({['-q', '-p', 'no:cacheprovider', *arguments]}))"
    status = exit_status(source, ROOT, log)
    assert status == 0, log.read_text()
    return log.read_text()


def test_every_file_is_in_one_list():
    """Each file is in a folder, which says where it runs, and has a name of its own, as pytest wants."""
    assert {path.parent.parent for path in FILES} == {ROOT / "tests"}, "move each into a folder of tests/"
    assert len({path.name for path in FILES}) == len(FILES)
    assert {name for names in FOLDERS.values() for name in names} <= {folder(path) for path in FILES}


def test_no_file_of_tests_imports_another():
    """Shared code stands in a module without tests: an imported test would run twice."""
    files = {path.stem for path in FILES}
    for path in (ROOT / "tests").rglob("*.py"):
        nodes = [*ast.walk(ast.parse(path.read_text()))]
        imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert imported & files == set(), path


class Item:
    """A stand-in for a collected test, with what the selection asks for."""

    def __init__(self, folder, name="test", *markers):
        self.path = Path(f"tests/{folder}/test_file.py")
        self.nodeid = f"{self.path}::{name}"
        self.markers = [getattr(pytest.mark, marker) for marker in markers]

    def add_marker(self, marker):
        self.markers.append(getattr(pytest.mark, marker) if isinstance(marker, str) else marker)

    def get_closest_marker(self, name):
        return next((marker for marker in self.markers if marker.name == name), None)


@pytest.fixture
def chosen(monkeypatch):
    """{name: its markers} of the tests that a session would run, by what it has and by its options."""

    def choose(items, on_a_gpu=False, interpreted=False, everything=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: on_a_gpu)
        monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1" if interpreted else "0")
        left_out = []
        hook = types.SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
        config = types.SimpleNamespace(option=types.SimpleNamespace(all=everything), hook=hook)
        every, items = [*items], [*items]
        conftest.pytest_collection_modifyitems(config, items)
        assert {*items} | {*left_out} == {*every}
        return {item.nodeid.partition("::")[2]: {marker.name for marker in item.markers} for item in items}

    return choose


def in_dtypes(folder, parameters):
    return [Item(folder, f"test[torch.{dtype}-{p}]") for dtype in DTYPES for p in parameters]


def test_of_each_test_one_dtype(chosen):
    found = chosen(in_dtypes("kernels", range(100)))
    assert {name.partition("-")[2] for name in found} == {f"{p}]" for p in range(100)}
    assert len(found) == 100
    for dtype in ("bfloat16", "float32"):  # those of most models
        assert sum(f".{dtype}-" in name for name in found) > 30
    assert found == chosen(in_dtypes("kernels", range(100)))
    assert len(chosen(in_dtypes("kernels", range(100)), everything=True)) == 400


def test_of_training_and_evaluation_one(chosen):
    items = [
        Item("contract", f"test[{p}-{mode}]") for p in range(40) for mode in ("train", "eval", "with_train")
    ]
    found = chosen(items)
    assert len(found) == 80
    assert 8 < sum(name.endswith("-train]") for name in found) < 32


def test_of_some_tests_so_many(chosen):
    items = [Item("contract", f"test[{p}]") for p in range(40)]
    for item in items:
        item.add_marker(pytest.mark.some(7))
    assert len(chosen(items)) == 7
    assert len(chosen(items, everything=True)) == len(chosen(items, on_a_gpu=True)) == 40


def test_on_a_gpu_all_dtypes_but_the_twin(chosen):
    found = chosen(in_dtypes("kernels", range(3)), on_a_gpu=True)
    assert {name: "gpu" in markers for name, markers in found.items()} == {
        f"test[torch.{dtype}-{p}]": dtype != "float16" for dtype in DTYPES for p in range(3)
    }


def test_slow_tests_only_when_asked_for(chosen):
    items = [Item("kernels", "fast"), Item("kernels", "slow", "slow")]
    assert [*chosen(items)] == ["fast"]
    assert [*chosen(items, everything=True)] == ["fast", "slow"]


def test_some_of_each_test_on_compiled_code(chosen):
    items = [Item("kernels", f"{test}[{p}]") for test in ("test_a", "test_b") for p in range(50)]
    items += [Item("kernels", "test_c"), *(Item("lab", f"test[{p}]") for p in range(50))]
    found = {name for name, markers in chosen(items).items() if "compiled" in markers}
    for test, number in (
        ("test_a", COMPILED_OF_EACH),
        ("test_b", COMPILED_OF_EACH),
        ("test_c", 1),
        ("test", 50),
    ):
        assert sum(name.partition("[")[0] == test for name in found) == number
    everything = chosen(items, everything=True)
    assert all("compiled" in markers for markers in everything.values())


@pytest.mark.parametrize("interpreted", [True, False])
def test_each_session_has_its_tests(chosen, interpreted):
    items = [
        Item("kernels", "kernels"),
        Item("lab", "compiler"),
        Item("contract", "contract"),
        Item("models", "others"),
        Item("kernels", "meter", "interpreter"),
        Item("bench", "all", "interpreter"),
    ]
    expected = {
        "kernels": {"gpu", "compiled"},
        "compiler": {"compiled"} | ({"skip"} if interpreted else set()),
        "contract": {"gpu"},
        "others": set(),
        "meter": {"interpreter"} | (set() if interpreted else {"skip"}),
        "all": {"interpreter"} | (set() if interpreted else {"skip"}),
    }
    assert chosen(items, interpreted=interpreted) == expected


@pytest.mark.parametrize(
    ("named", "variables", "kernels"),
    [
        (["tests"], {}, "interpreter"),
        (["tests/kernels/test_rows.py::test_eps", "tests/lab/test_static.py"], {}, "compiled"),
        (["tests/kernels/test_rows.py", "tests/models/test_fuse.py"], {}, "interpreter"),
        (["tests"], {"NORMREG_CPU_KERNELS": "compiled"}, "compiled"),
        (["tests/kernels/test_rows.py"], {"NORMREG_CPU_KERNELS": "interpreter"}, "interpreter"),
        (["tests/kernels/test_rows.py"], {"TRITON_INTERPRET": "1"}, "interpreter"),
        (["tests/lab"], {}, "compiled"),
    ],
)
def test_by_what_kernels_run(monkeypatch, named, variables, kernels):
    for name in ("NORMREG_CPU_KERNELS", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert conftest.kernels_of_the_cpu(types.SimpleNamespace(args=named)) == kernels


@pytest.mark.parametrize("mark", ["gpu", "compiled"])
def test_files_without_such_tests_are_not_imported(mark):
    config = types.SimpleNamespace(option=types.SimpleNamespace(markexpr=mark))
    read = [path for path in FILES if not conftest.pytest_ignore_collect(path, config)]
    assert read == [path for path in FILES if path.parent.name in FOLDERS[mark]]
    assert 0 < len(read) < len(FILES)


@pytest.mark.slow
def test_the_marker_is_of_the_files_in_the_list(tmp_path):
    printed = output_of_pytest(tmp_path / "log", "--collect-only", "-m", "gpu", "tests")
    tests = [line for line in printed.splitlines() if "::" in line]
    assert {folder(Path(test.partition("::")[0])) for test in tests} == {*FOLDERS["gpu"]}


def test_what_torch_warns_of_on_a_gpu_is_no_error(monkeypatch):
    """Neither the import of torch._dynamo.reset() nor the warning of autograd's thread is an error."""
    monkeypatch.delitem(sys.modules, "torch.utils.mkldnn", raising=False)
    importlib.import_module("torch.utils.mkldnn")
    warnings.warn(
        "Attempting to run cuBLAS, but there was no current CUDA context! Attempting to set the primary "
        "context... (Triggered internally at CublasHandlePool.cpp:330.)",
        stacklevel=1,
    )


@pytest.mark.slow
def test_nothing_else_that_is_imported_there_warns(tmp_path):
    path = tmp_path / "test_imports.py"
    path.write_text("def test_import():\n    import torch._inductor.cudagraph_trees\n")
    output_of_pytest(tmp_path / "log", "-c", str(ROOT / "pyproject.toml"), str(path))
