"""Without Triton, as on macOS and Windows, normreg is imported and runs on torch's operators."""

import json
import os

import programs
import pytest

BROKEN = "from . import part\nraise ImportError('libcuda.so.1: cannot open shared object file')\n"


@pytest.fixture
def broken(tmp_path):
    """A PYTHONPATH on which Triton is, but cannot be imported."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(BROKEN)
    (tmp_path / "triton" / "part.py").touch()
    return os.pathsep.join(map(str, (tmp_path, programs.ROOT, programs.TESTS)))


def test_without_triton():
    printed = programs.compiling("without_triton", "hidden", CUDA_VISIBLE_DEVICES="").stdout
    assert json.loads(printed) == ["Triton is not installed: No module named 'triton'"]


def test_with_a_broken_triton(broken):
    printed = programs.compiling("without_triton", CUDA_VISIBLE_DEVICES="", PYTHONPATH=broken).stdout
    why = "its import fails with libcuda.so.1: cannot open shared object file"
    assert json.loads(printed) == [f"Triton is not installed: {why}"]


@pytest.mark.parametrize(
    "setting", ["NORMREG_CPU_KERNELS=interpreter", "NORMREG_CPU_KERNELS=compiled", "TRITON_INTERPRET=1"]
)
def test_kernels_that_are_asked_for_need_it(broken, setting):
    name, _, value = setting.partition("=")
    error = programs.python("import normreg", PYTHONPATH=broken, **{name: value}).stderr.splitlines()[-1]
    assert error == (
        f"ImportError: {setting}: expected Triton to be installed, got: its import fails with libcuda.so.1: "
        f"cannot open shared object file: pip install triton, which there is for Linux, or unset {name}: "
        "tensors of the CPU then go to torch's own operators"
    )
