"""The five networks are the published ones, and the benchmark's records say what happened."""

import dataclasses
import json
import os
from pathlib import Path
from unittest import mock

import forked
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import normreg
from bench.harness import worker
from bench.perf import models
from bench.perf.models import networks, tables, variants
from normreg import functional

ROOT = Path(__file__).parents[2]
PUBLISHED = {  # parameters; norms and dropouts
    "gpt2": (124_439_808, 25 + 25),
    "bert": (109_514_298, 26 + 25),
    "vit": (86_567_656, 25),
    "resnet50": (25_557_032, 53),
    "convnext": (28_589_128, 23),
}
MULTIPLICATIONS = {"vit": 17.564e9, "resnet50": 4.089e9, "convnext": 4.456e9}  # an image; torchvision's list
TINY = {  # layers replaced; what their kernels' names begin with
    "gpt2": (5 + 5, {"layer_norm", "dropout"}),
    "bert": (6 + 5, {"layer_norm", "dropout"}),
    "vit": (5, {"layer_norm"}),
    "resnet50": (17, {"batch_norm"}),
    "convnext": (9, {"layer_norm"}),
}
# Two results that are each as exact as torch.nn's are at most twice its error apart; four times that, because
# a single run's error is a matter of chance. It may be less than what float32 resolves in a loss.
ROUNDING_FACTOR = 8
RESOLUTION = torch.finfo(torch.float32).eps

VIT = models.OPERATIONS["vit"]
SHALLOW = dataclasses.replace(VIT, tiny=VIT.tiny | dict(layers=1))  # of 2: where records are what is tested


def measured(model):
    return models.measure(model, worker.Here(models.Attempts))


every_model = pytest.mark.parametrize("model", models.OPERATIONS.values(), ids=models.OPERATIONS)


@pytest.fixture(autouse=True)
def guarded_memory():
    """Guards nothing: networks are built under torch.device, which the guards' torch.empty does not see."""


@pytest.fixture(autouse=True)
def gpu_tiles():
    """Leaves the interpreter's own tiles, which the benchmark uses in the interpreter."""


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(variants, "TINY", True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the benchmark does in the interpreter
    yield
    torch.set_num_threads(threads)


def within_rounding(model):
    """Whether normreg's first losses equal torch.nn's up to rounding."""
    original = variants.first_losses(model, "torch.nn")
    yardstick = models.largest_difference(original, variants.first_losses(model, "torch.nn", True))
    difference = models.largest_difference(original, variants.first_losses(model, "normreg"))
    return difference <= ROUNDING_FACTOR * max(yardstick, RESOLUTION * max(original))


@every_model
def test_networks_are_the_published_ones(model):
    with torch.device("meta"):
        network = model.network()
        inputs, labels = network.random_batch(1)
        with FlopCounterMode(display=False) as counter:
            variants.loss_of(network, inputs, labels)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert (parameters, len(normreg.replace(network).changed)) == PUBLISHED[model.name]
    if model.name in MULTIPLICATIONS:
        assert counter.get_total_flops() / 2 == pytest.approx(MULTIPLICATIONS[model.name], rel=1e-3)


@every_model
def test_tiny_networks_train_on_the_kernels(model, launches):
    training = variants.Training(model, "normreg")
    ours = [m for m in training.network.modules() if type(m).__module__.startswith("normreg.")]
    layers, kernels = TINY[model.name]
    assert len(ours) == layers
    variants.loss_of(training.network, training.inputs, training.labels).backward()
    for name, parameter in training.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(any(launched.startswith(name) for launched in launches) for name in kernels)


@every_model
def test_variants_start_from_the_same(model):
    first, second = (variants.Training(model, variant) for variant in ("torch.nn", "normreg"))
    torch.testing.assert_close(first.network.state_dict(), second.network.state_dict(), rtol=0, atol=0)
    assert first.inputs.equal(second.inputs)
    assert first.labels.equal(second.labels)
    if model.channels_last:
        assert first.inputs.is_contiguous(memory_format=torch.channels_last)


def test_without_dropout():
    training = variants.Training(models.OPERATIONS["bert"], "normreg")
    variants.without_dropout(training.network)
    losses = [variants.loss_of(training.network, training.inputs, training.labels) for _ in range(2)]
    assert losses[0].equal(losses[1])


@every_model
def test_losses_differ_by_rounding(model):
    assert within_rounding(model)


@pytest.mark.parametrize("fault", ["value", "gradient"])
@pytest.mark.parametrize(("name", "operation"), [("vit", "layer_norm"), ("resnet50", "batch_norm")])
def test_a_fault_is_more_than_rounding(name, operation, fault, monkeypatch):
    real = getattr(functional, operation)

    def faulty(x, *arguments, **options):
        if fault == "value":
            return real(x, *arguments, **options) * 1.001
        return real(x + 0.5 * (x - x.detach()), *arguments, **options)

    monkeypatch.setattr(functional, operation, faulty)
    assert not within_rounding(models.OPERATIONS[name])


@pytest.mark.skipif(variants.ON_GPU, reason="a GPU measures")
def test_without_a_gpu_losses_are_all_there_is():
    records = list(measured(SHALLOW))
    assert json.loads(json.dumps(records)) == records
    assert [record["variant"] for record in records] == ["torch.nn", "normreg", variants.FUSED]
    assert [record["layers_replaced"] for record in records] == [0, 3, 3]
    for record in records:
        assert record["operation"] == "vit"
        assert record["step_ms"] is record["peak_bytes"] is record["warm_up_s"] is record["error"] is None
        assert len(record["losses"]) == variants.COMPARED_STEPS
    _, _, *rows = tables.table(records).splitlines()
    assert [row.count("not measured") for row in rows] == [2, 3, 3]
    assert all(row.rstrip(" |").endswith(f"{records[0]['loss_yardstick']:.1e}") for row in rows[1:])


@pytest.mark.parametrize("name", [name for name, model in models.OPERATIONS.items() if model.has_blocks])
def test_fused_blocks(name, launches):
    """Every block launches the fusions; losses differ by rounding, and less is kept than by torch.nn."""
    model = models.OPERATIONS[name]
    training = variants.Training(model, variants.FUSED)
    training.step()
    blocks = [module for module in training.network.modules() if isinstance(module, networks.Block)]
    assert len(blocks) == model.tiny["layers"]
    each = {"bias_act_dropout_forward": 1, "dropout_add_norm_forward": 2 if name == "bert" else 1}
    for kernel, count in each.items():
        assert launches.count(f"{kernel}_kernel") == count * len(blocks)
    original, fused = (variants.first_losses(model, variant) for variant in ("torch.nn", variants.FUSED))
    exact = variants.first_losses(model, "torch.nn", higher_precision=True)
    allowed = ROUNDING_FACTOR * models.largest_difference(original, exact)
    assert models.largest_difference(fused, original) <= allowed
    if name != "vit":  # which drops nothing
        assert variants.kept(model, variants.FUSED) < variants.kept(model, "torch.nn")


@pytest.mark.skipif(variants.ON_GPU, reason="the networks of a GPU take minutes")
def test_command(tmp_path):
    arguments = "models", "--operations", "convnext", "--out", str(tmp_path)
    status, printed = forked.bench(tmp_path / "log", *arguments)
    assert status == 0, printed
    assert "ConvNeXt-T (tiny)" in printed
    (run,) = json.loads((tmp_path / "models" / "convnext.json").read_text())["runs"]
    assert [record["variant"] for record in run["records"]] == [
        "torch.nn",
        "normreg",
    ]  # it has no such blocks


class StubEvent:
    """A timer by which every step takes a millisecond more than the one before."""

    count = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        StubEvent.count += 1
        self.time = StubEvent.count**2 / 2

    def elapsed_time(self, end):
        return end.time - self.time


@pytest.fixture
def stub_gpu(monkeypatch):
    """Runs the GPU's path on whatever device there is."""
    StubEvent.count = 0
    monkeypatch.setattr(variants, "ON_GPU", True)
    monkeypatch.setattr(models, "VARIANTS", ("torch.nn", "normreg", variants.FUSED, "torch.compile"))
    monkeypatch.setattr(variants, "AUTOCAST", torch.bfloat16)
    monkeypatch.setattr(variants, "HIGHER_PRECISION", torch.float32)
    monkeypatch.setattr(variants, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(variants, "TIMED_STEPS", 2)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(models.gc, "collect", lambda: None)  # there is no GPU's memory to give back
    stubs = dict(
        Event=StubEvent,
        memory_allocated=lambda: 2**30,
        max_memory_allocated=lambda: 3 * 2**30,
        reset_peak_memory_stats=lambda: None,
        synchronize=lambda: None,
        empty_cache=lambda: None,
    )
    for name, stub in stubs.items():
        monkeypatch.setattr(torch.cuda, name, stub)


def test_with_a_gpu_steps_are_timed_and_a_failure_is_a_record(stub_gpu):
    with mock.patch.object(torch, "compile", side_effect=RuntimeError("no compiler\nat all")):
        records = list(measured(SHALLOW))
    assert json.loads(json.dumps(records)) == records
    original, replaced, fused, compiled = records
    assert original["step_ms"] == [1.5, 2.5]
    assert replaced["step_ms"] == [4.5, 5.5]
    for record in (original, replaced, fused):
        assert record["peak_bytes"] == 2 * 2**30
        assert record["error"] is record["loss_error"] is None
        assert record["precision"] == "bfloat16 autocast"
    assert compiled["error"] == "RuntimeError: no compiler"
    assert compiled["step_ms"] is compiled["losses"] is None
    assert replaced["loss_difference"] <= ROUNDING_FACTOR * original["loss_yardstick"]
    _, _, *rows, error = tables.table(records).splitlines()
    assert [row.count("failed") for row in rows] == [0, 0, 0, 2]
    assert error.endswith("torch.compile: RuntimeError: no compiler")


def test_an_attempt_that_kills_its_process_spoils_no_other():
    with forked.workers(), worker.Worker(models.Attempts) as attempts:
        assert models.attempt(attempts, os._exit, 1) == (None, "the process died: exit code 1")
        assert models.attempt(attempts, models.largest_difference, [1.0], [1.5]) == (0.5, None)


def test_step_time_is_a_median_between_percentiles():
    assert tables.step_time([5.0, 1.0, 3.0, 2.0, 4.0]) == "3.00 (1.80-4.20)"


def record(variant, step_ms, **others):
    found = dict(case="network", variant=variant, layers_replaced=0, step_ms=step_ms)
    missing = ("peak_bytes", "error", "loss_error", "loss_difference", "loss_yardstick", "kept_bytes")
    return dict.fromkeys(missing) | found | others


@pytest.mark.parametrize(
    ("original", "compiled", "expected"),
    [([3.0, 3.0], [2.0, 2.0], "0.50x"), ([3.0, 3.0], None, "0.75x"), (None, None, "not measured")],
)
def test_speed_up_is_over_the_faster_baseline(original, compiled, expected):
    records = [record("torch.nn", original), record("normreg", [4.0, 4.0]), record("torch.compile", compiled)]
    assert [tables.speed_up(r, records) for r in records] == ["-", expected, "-"]


def test_losses_that_are_not_finite_are_an_error(stub_gpu, monkeypatch):
    monkeypatch.setattr(models, "VARIANTS", ("torch.nn",))
    monkeypatch.setattr(variants, "loss_of", lambda network, *batch: network.head.weight.sum() * float("nan"))
    (found,) = measured(SHALLOW)
    assert found["losses"] is None
    assert found["loss_error"].startswith("FloatingPointError: losses that are not finite")
    assert "not finite" in tables.table([found]).splitlines()[-1]
