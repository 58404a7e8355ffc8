"""Which kernels run on tensors of the CPU: what NORMREG_CPU_KERNELS may say, and what follows it."""

import runpy
from pathlib import Path

import programs
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


def error_of(source, **environment):
    """The last line that a process writes to stderr."""
    return programs.python(source, **environment).stderr.splitlines()[-1]


def test_the_interpreter_by_this_variable_alone():
    source = "import normreg, torch; print(normreg.explain(normreg.LayerNorm(8), torch.randn(3, 8)))"
    done = programs.python(source, NORMREG_CPU_KERNELS="interpreter")
    assert "1 call: 1 kernel (100 %)" in done.stdout, done.stderr


@pytest.mark.parametrize("setting", ["NORMREG_CPU_KERNELS=interpreter", "TRITON_INTERPRET=1"])
def test_too_late_for_the_interpreter(setting):
    name, _, value = setting.partition("=")
    assert error_of(f"import os, triton; os.environ[{name!r}] = {value!r}; import normreg") == (
        f"RuntimeError: {setting}: expected normreg to be imported before triton, got triton imported "
        "without its interpreter: import it first, or set TRITON_INTERPRET=1 before Python starts"
    )


@pytest.mark.parametrize("setting", ["NORMREG_CPU_KERNELS=interpreter", "TRITON_INTERPRET=1"])
def test_the_interpreter_needs_numpy(setting):
    name, _, value = setting.partition("=")
    error = error_of("import sys; sys.modules['numpy'] = None; import normreg", **{name: value})
    assert error == (
        f"ModuleNotFoundError: {setting}: expected numpy to be installed, which Triton's interpreter needs: "
        f"pip install numpy, or unset {name}: tensors of the CPU then go to torch's own operators"
    )


LATE = (
    "{} was set after normreg was imported, which reads it then: tensors of the CPU go to torch's operators; "
    "set it before Python starts, or above the first import of normreg and triton"
)
WAYS = {
    "tensor": lambda layer, x: layer(x),
    "explain": normreg.explain,
    "replace": lambda layer, x: normreg.replace(layer),
}


@pytest.fixture
def without_kernels(monkeypatch):
    """Kernels as where neither variable was set when normreg was imported."""
    monkeypatch.setattr(cpu, "KERNELS", None)
    monkeypatch.setattr(cpu, "READ", dict.fromkeys(cpu.READ))
    for name in cpu.READ:
        monkeypatch.delenv(name, raising=False)
    cpu._warn.cache_clear()
    cpu.warn_at_the_first_tensor.cache_clear()


@pytest.mark.parametrize("setting", ["NORMREG_CPU_KERNELS=interpreter", "TRITON_INTERPRET=1"])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_set_after_the_import_is_not_ignored_in_silence(without_kernels, monkeypatch, setting, way):
    monkeypatch.setenv(*setting.split("="))
    layer, x = normreg.LayerNorm(8), torch.randn(3, 8)
    with pytest.warns(UserWarning, match=f"^{LATE.format(setting)}$") as seen:
        _ = [WAYS[way](layer, x) for _ in range(3)]
    assert len(seen) == 1


@pytest.mark.parametrize("setting", ["NORMREG_CPU_KERNELS=none", "TRITON_INTERPRET=0", "TRITON_INTERPRET="])
@pytest.mark.parametrize("way", WAYS)
def test_what_asks_for_nothing_may_be_set(without_kernels, monkeypatch, setting, way):
    monkeypatch.setenv(*setting.split("="))
    WAYS[way](normreg.LayerNorm(8), torch.randn(3, 8))


def test_what_a_notebook_sets_late():
    setting = "os.environ['TRITON_INTERPRET'] = '1'"
    done = programs.python(f"import os, torch, normreg; {setting}; normreg.Dropout()(torch.ones(3))")
    assert (done.returncode, LATE.format("TRITON_INTERPRET=1") in done.stderr) == (0, True), done.stderr


def test_a_contradiction(chosen):
    message = "expected TRITON_INTERPRET to be unset, got 1: unset one"
    with pytest.raises(ValueError, match=f"^NORMREG_CPU_KERNELS=compiled: {message}$"):
        chosen("compiled", interpret="1")


def test_a_word_that_means_nothing(chosen):
    message = (
        "NORMREG_CPU_KERNELS: expected one of interpreter, compiled, none, got 'compile': set one of these"
    )
    with pytest.raises(ValueError, match=f"^{message}"):
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
