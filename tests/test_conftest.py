"""What conftest.py and pyproject.toml decide for all tests: which of them a GPU runs, which warnings pass."""

import ast
import subprocess
import sys
from pathlib import Path

from conftest import ELSEWHERE, ON_A_GPU, stem

ROOT = Path(__file__).parent.parent


def collected(*options):
    """Tests that pytest would run with these options."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        *options,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_every_file_is_in_one_list():
    files = {stem(path) for path in (ROOT / "tests").glob("test_*.py")}
    assert files - {*ON_A_GPU, *ELSEWHERE} == set(), "say in conftest.py whether `pytest -m gpu` runs them"
    assert {*ON_A_GPU} - files == set()
    assert {*ON_A_GPU} & {*ELSEWHERE} == set()


def test_no_file_of_tests_imports_another():
    """What several need stands in a module without tests, or pytest would run them twice."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    for path in files:
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert {node.module for node in imports} & {other.stem for other in files} == set(), path.name


def test_the_marker_is_of_the_files_in_the_list():
    tests = collected("-m", "gpu")
    assert {stem(Path(test.partition("::")[0])) for test in tests} == {*ON_A_GPU}
    for dtype, found in (("torch.bfloat16", True), ("torch.float16", False)):
        assert (f"tests/test_rows.py::test_agrees_with_torch[1025-{dtype}-rms_norm]" in tests) == found


# what torch._dynamo.reset() does where there is a GPU; what autograd's thread says there
WARNS = """
import warnings

def test_import():
    import torch._inductor.cudagraph_trees

def test_cublas():
    warnings.warn("Attempting to run cuBLAS, but there was no current CUDA context! Attempting to set the "
                  "primary context... (Triggered internally at CublasHandlePool.cpp:330.)")
"""


def test_what_torch_warns_of_on_a_gpu_is_no_error(tmp_path):
    path = tmp_path / "test_warns.py"
    path.write_text(WARNS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    done = subprocess.run([*command, str(path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
