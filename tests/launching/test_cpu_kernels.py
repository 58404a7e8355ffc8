"""Which kernels run on tensors of the CPU: what NORMREG_CPU_KERNELS may say, and what follows it."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

import normreg
from bench import lab
from normreg.kernels import cpu

FILE = Path(cpu.__file__)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def chosen(monkeypatch):
    """What the module decides with these variables, imported as if for the first time."""

    def decide(kernels=None, interpret=None):
        for name, value in (("NORMREG_CPU_KERNELS", kernels), ("TRITON_INTERPRET", interpret)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        return runpy.run_path(str(FILE))["KERNELS"]

    return decide


@pytest.mark.parametrize("kernels", [None, "", "none"])
def test_nothing_unless_it_is_asked_for(chosen, kernels):
    assert chosen(kernels) is None


@pytest.mark.parametrize("kernels", [None, "", "none", "interpreter"])
def test_tritons_own_variable_is_followed(chosen, kernels):
    assert chosen(kernels, interpret="1") == "interpreter"


def test_the_interpreter_by_this_variable_alone():
    source = "import normreg, torch; print(normreg.explain(normreg.LayerNorm(8), torch.randn(3, 8)))"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"NORMREG_CPU_KERNELS": "interpreter"}
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "1 call: 1 kernel (100 %)" in done.stdout, done.stderr


def test_too_late_for_the_interpreter(chosen):
    message = "expected normreg to be imported before triton, got triton imported without its interpreter"
    with pytest.raises(
        RuntimeError, match=f"^NORMREG_CPU_KERNELS=interpreter: {message}: import normreg first"
    ):
        chosen("interpreter")


def test_a_contradiction(chosen):
    message = "expected TRITON_INTERPRET to be unset, got 1: unset one"
    with pytest.raises(ValueError, match=f"^NORMREG_CPU_KERNELS=compiled: {message}$"):
        chosen("compiled", interpret="1")


def test_a_word_that_means_nothing(chosen):
    message = "NORMREG_CPU_KERNELS: expected one of interpreter, compiled, none, got 'compile'"
    with pytest.raises(ValueError, match=f"^{message}$"):
        chosen("compile")


def test_compiled_code_needs_a_driver(chosen, monkeypatch):
    class Driver:
        active = None

    monkeypatch.setattr(triton.runtime, "driver", Driver)
    message = r"got none: call bench\.lab\.install\(\) before importing normreg$"
    with pytest.raises(RuntimeError, match=message):
        chosen("compiled")
    Driver.active = Driver()
    with pytest.raises(RuntimeError, match=message.replace("none", "Driver")):
        chosen("compiled")
    Driver.executes_in_host_memory = True
    assert chosen("compiled") == "compiled"


def test_dispatch_follows(monkeypatch):
    x, layer = torch.randn(3, 8), normreg.LayerNorm(8)
    monkeypatch.setattr(cpu, "KERNELS", "compiled")
    assert [call.path for call in normreg.explain(layer, x)] == ["kernel"]
    monkeypatch.setattr(cpu, "KERNELS", None)
    (call,) = normreg.explain(layer, x)
    assert (call.path, call.why) == ("torch", "there is no kernel for cpu tensors")


def test_one_place_decides():
    """No other file of the package reads either variable."""
    package = [*FILE.parent.rglob("*.py"), *Path(normreg.__file__).parent.rglob("*.py")]
    readers = {path.name for path in package if "INTERPRET" in path.read_text()}
    assert readers == {"cpu.py", "hardware.py", "launch.py"}
    assert [p.name for p in package if "NORMREG_CPU_KERNELS" in p.read_text()] == ["cpu.py"]


def test_interpreted_kernels_are_not_executed():
    with pytest.raises(RuntimeError, match=r"^expected TRITON_INTERPRET to be unset, got 1"):
        lab.install()
