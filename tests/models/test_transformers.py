"""`replace` on models of the transformers package, built small and from random weights."""

import copy
import importlib

import programs
import pytest
import torch
from fusible import fresh_graphs  # noqa: F401
from support.hugging_face import MODELS, assert_agrees, assert_trains, built, imported, in_float64, train

import normreg
from normreg.kernels import cpu, launch
from normreg.models import registry

pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru:UserWarning")


@pytest.fixture(autouse=True)
def gpu_tiles():
    """Leaves the interpreter's own tiles, which are faster; a GPU's tiles are tested elsewhere."""
    launch.forget()


@pytest.fixture(scope="module", autouse=True)
def transformers():
    pytest.importorskip("transformers")
    with imported() as package:
        yield package


def seeded(run, *arguments):
    torch.manual_seed(3)
    return run(*arguments)


@pytest.mark.some(4)
@pytest.mark.parametrize("fuse", [False, True], ids=["replaced", "fused"])
@pytest.mark.parametrize("name", MODELS)
def test_trains_as_before(transformers, device, name, fuse):
    _, _, layers, _ = MODELS[name]
    model, inputs = built(transformers, name, device)
    steps = 3 if fuse and "ResNet" in name else 2 - fuse
    assert len(assert_trains(model, inputs, steps, fuse=fuse).changed) == layers


@pytest.mark.some(4)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_fused(transformers, device, name):
    """With dropout, whose masks are those of the unfused model where it is a layer."""
    *_, fused = MODELS[name]
    model, inputs = built(transformers, name, device, drops=True)
    twin = copy.deepcopy(model)
    normreg.replace(twin)
    report = normreg.replace(model, fuse=True, example_inputs=inputs)
    assert sorted(fusion.what for fusion in report.fused) == sorted(fused)
    if "Whisper" not in name:  # whose dropout is a function
        assert_agrees(
            *[seeded(run, m, inputs, 1) for run, m in ((train, model), (train, twin), (in_float64, twin))]
        )


@pytest.fixture
def deterministic(monkeypatch):
    """Makes torch's operators deterministic, with the variable that cuBLAS asks for."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore:.*deterministic:UserWarning")  # of operators that have no other way
@pytest.mark.parametrize("name", MODELS)
def test_restores_to_the_last_bit(transformers, device, deterministic, name):
    model, inputs = built(transformers, name, device)
    twin, was = copy.deepcopy(model), {key: type(module) for key, module in model.named_modules()}
    normreg.replace(model, fuse=True)
    normreg.restore(model)
    assert {key: type(module) for key, module in model.named_modules()} == was
    for result, expected in zip(train(model, inputs, 1), train(twin, inputs, 1), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.some(4)
@pytest.mark.parametrize("name", MODELS)
def test_trains_as_before_without_kernels(transformers, monkeypatch, name):
    """Training runs on a CPU outside the interpreter."""
    monkeypatch.setattr(cpu, "KERNELS", None)
    model, inputs = built(transformers, name, torch.device("cpu"))
    twin, exact = copy.deepcopy(model), in_float64(model, inputs, 2)
    normreg.replace(model, fuse=True)
    assert_agrees(train(model, inputs, 2), train(twin, inputs, 2), exact)
    assert {call.path for call in normreg.explain(model, **inputs)} <= {"torch", "nothing"}


@pytest.mark.slow
def test_trains_as_before_outside_the_interpreter(tmp_path):
    programs.interpreted("transformers_without_kernels", tmp_path / "log")


def test_the_classes_that_are_known_exist(transformers):
    """Those of the models above; a class that was renamed would be left alone in silence."""
    models = ("llama", "gemma", "t5", "convnext")
    for path in registry.FORWARDS:
        module, _, name = path.rpartition(".")
        if module in [f"transformers.models.{model}.modeling_{model}" for model in models]:
            assert hasattr(importlib.import_module(module), name), path
