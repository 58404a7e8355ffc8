"""The benchmark's cases, gates, peers and command. Nothing is timed here."""

import contextlib
import copy
import functools
import json
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import forked
import programs
import pytest
import torch
from stand_in_gpu import SMALL

import normreg
from bench import __main__
from bench.operations import OPERATIONS, Case, cases
from bench.operations.case import DTYPES
from bench.perf import harness, measuring, peers, report, tables
from bench.perf.peers import PEERS, Peer

ROOT = Path(__file__).parent.parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def bench(*arguments):
    """`python -m bench` from the start."""
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


# Cases


@pytest.mark.parametrize("proof", ["ledger", "static", "instructions", "host", "speed"])
def test_every_operation_has_cases_and_they_take_turns(proof):
    chosen = cases(proof)
    assert len(chosen) == len(set(chosen))
    assert {case.operation for case in chosen[: len(OPERATIONS)]} == set(OPERATIONS)
    assert cases(proof, ["dropout"]) == list(getattr(OPERATIONS["dropout"], proof))


def test_cases_of_speed_cover_what_is_promised():
    chosen = cases("speed")
    assert {case.dtype for case in chosen} == {torch.float16, torch.bfloat16, torch.float32}
    norms = [case for case in chosen if case.operation == "layer_norm"]
    assert {256, 131072, 5120, 7168, 64, 128} <= {case.shape[-1] for case in norms}
    batch_norms = [case for case in chosen if case.operation == "batch_norm"]
    assert {case.channels_last for case in batch_norms} == {True, False}
    assert {len(case.shape) for case in batch_norms} == {2, 3, 4, 5}
    assert any(
        case.shape[1] < 4 and case.shape[2] * case.shape[3] > 10**6
        for case in batch_norms
        if len(case.shape) == 4
    )
    assert min(case.bytes for case in chosen) < 2**14
    assert max(case.bytes for case in chosen) > 2**29


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("proof", ["ledger", "static", "instructions", "host", "speed"])
def test_the_layer_of_every_case_exists_in_both_libraries(name, proof):
    for case in getattr(OPERATIONS[name], proof):
        layers = [
            OPERATIONS[name].layer(library, case, device="meta", dtype=case.dtype)
            for library in (torch.nn, normreg)
        ]
        assert layers[0].state_dict().keys() == layers[1].state_dict().keys()
        assert layers[0].training is layers[1].training is case.training


def test_names_of_cases():
    case = Case("batch_norm", (2, 3, 4, 5), DTYPES["fp16"], channels_last=True, training=False)
    assert str(case) == "batch_norm fp16 2x3x4x5 channels_last evaluation"
    assert case.like_input(torch.randn, "cpu").is_contiguous(memory_format=torch.channels_last)
    assert str(Case("dropout", (2, 3), layer="Dropout1d")) == "Dropout1d bf16 2x3"
    assert OPERATIONS["batch_norm"].least_bytes(case, "backward") == 3 * 2 * 120


# Time


def test_a_budget_leaves_out_what_would_end_too_late(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(harness.time, "monotonic", lambda: clock[0])
    budget, done = harness.Budget(10), []
    for duration in budget.within([1, 4, 3, 3, 1]):
        done.append(duration)
        clock[0] += duration
    assert done == [1, 4, 3]  # 8 seconds are over, and the slowest took 4
    assert budget.left_out == ["3", "1"]
    budget = harness.Budget(10)
    assert budget.left() == 10
    budget.end_in(2)
    for duration in budget.within([1, 3, 1], ended=True):
        done.append(duration)
        clock[0] += duration
    assert done == [1, 4, 3, 1, 3]  # the second began in time, and is ended by whoever took it
    assert budget.left_out == ["1"]
    assert list(harness.Budget(None).within([1, 2])) == [1, 2]


# Gates


@pytest.mark.parametrize(("name", "dtype"), [("batch_norm", torch.float32), ("layer_norm", torch.float16)])
def test_batch_norm_has_the_parameters_of_mixed_precision(name, dtype):
    layer = measuring.draw_layer(replace(SMALL[name], dtype=torch.float16), DEVICE)
    assert {tensor.dtype for tensor in layer.state_dict().values()} - {torch.int64} == {dtype}
    fused = measuring.draw_layer(replace(SMALL["batch_norm_act"], dtype=torch.float16), DEVICE)
    assert (fused.norm.weight.dtype, fused.residual.dtype) == (torch.float32, torch.float16)


def contestant_of(case, peer):
    subject = measuring.Subject(case, DEVICE)
    layer = copy.deepcopy(subject.layer)
    return subject, measuring.Contestant(peer.adapt(case.operation, layer), layer, subject.inputs)


def error_of(subject, contestant, forward_only=False):
    return subject.error(contestant, *contestant.first_call(forward_only))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("peer", PEERS[:2], ids=lambda peer: peer.name)
def test_normreg_and_torch_agree_with_float64(name, dtype, peer):
    case = replace(SMALL[name], dtype=DTYPES[dtype])
    subject, contestant = contestant_of(case, peer)
    error = error_of(subject, contestant)
    assert error <= OPERATIONS[name].tolerance(case)


WRONG = {
    "layer_norm": lambda layer: lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:], layer.weight),
    "rms_norm": lambda layer: lambda x: 1.01 * layer(x),
    "layer_norm_channels": lambda layer: lambda x: layer(x.flip(1)),
    "batch_norm": lambda layer: lambda x: layer(x).detach() + 0 * layer(x),  # no gradient, two updates
    "batch_norm_act": lambda layer: lambda x: torch.nn.functional.silu(layer.norm(x) + layer.residual),
    "group_norm": lambda layer: lambda x: torch.nn.functional.group_norm(x, 16, layer.weight, layer.bias),
    "instance_norm": lambda layer: lambda x: 1.01 * layer(x),
    "dropout": lambda layer: lambda x: torch.nn.functional.dropout(x, 0.2),
    "dropout_add": lambda layer: lambda x: layer.residual + 1.01 * layer.branch(x) * layer.layer_scale,
    "dropout_add_norm": lambda layer: lambda x: layer.norm(layer(x)),
    "bias_act_dropout": lambda layer: lambda x: layer.dropped(torch.nn.functional.silu(x + layer.bias)),
}


@pytest.mark.parametrize("peer", PEERS[:2], ids=lambda peer: peer.name)
def test_dropout_of_channels_agrees(peer):
    case = Case("dropout", (9, 200, 5, 3), torch.float32, layer="Dropout2d")
    subject, contestant = contestant_of(case, peer)
    error = error_of(subject, contestant)
    assert error <= OPERATIONS["dropout"].tolerance(case)


@pytest.mark.parametrize("name", SMALL)
def test_a_wrong_result_is_refused(name):
    wrong = Peer("wrong", lambda operation, layer: WRONG[operation](layer))
    subject, contestant = contestant_of(SMALL[name], wrong)
    if name == "layer_norm":  # without its bias
        contestant.layer.register_parameter("bias", None)
    error = error_of(subject, contestant)
    assert not error <= OPERATIONS[name].tolerance(SMALL[name])


@pytest.mark.parametrize("name", ["layer_norm", "dropout"])
def test_a_gradient_that_is_nan_is_refused(name):
    class Nan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dx):
            return dx / 0 - dx / 0

    broken = Peer("nan", lambda operation, layer: lambda x: layer(Nan.apply(x)))
    subject, contestant = contestant_of(SMALL[name], broken)
    assert not error_of(subject, contestant) <= OPERATIONS[name].tolerance(SMALL[name])


def test_dropout_with_another_mask_in_backward_is_refused():
    class TwoMasks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.nn.functional.dropout(x, 0.1)

        @staticmethod
        def backward(ctx, dy):
            return torch.nn.functional.dropout(dy, 0.1)

    subject, contestant = contestant_of(SMALL["dropout"], Peer("two", lambda *_: TwoMasks.apply))
    assert error_of(subject, contestant) > 0.1


# Peers


def fake_library(name, **functions):
    """A module that computes with torch what a library of that name would with its kernels."""
    module = types.ModuleType(name)
    module.__dict__.update(functions)
    return module


def norm(x, weight, bias, eps):
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps)


def root_mean_square(x, weight, eps):
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)


def dropped_sum(norm):
    def fused(x, weight, bias, residual=None, eps=1e-6, dropout_p=0.0, prenorm=False):
        z = torch.nn.functional.dropout(x, dropout_p)
        z = z if residual is None else residual + z
        y = norm(z, weight, bias, eps)
        return (y, z) if prenorm else y

    return fused


class LayerNorm(torch.nn.LayerNorm):
    def __init__(self, normalized_shape, eps, dtype=None):
        super().__init__(normalized_shape, eps, dtype=dtype)


class RMSNorm(torch.nn.RMSNorm):
    def __init__(self, normalized_shape, eps, dtype=None):
        super().__init__(normalized_shape, eps, dtype=dtype)


LIBRARIES = {
    "liger-kernel": {
        "liger_kernel": {},
        "liger_kernel.ops": {},
        "liger_kernel.ops.layer_norm": {"LigerLayerNormFunction": SimpleNamespace(apply=norm)},
        "liger_kernel.ops.rms_norm": {
            "LigerRMSNormFunction": SimpleNamespace(
                apply=lambda x, weight, eps, offset, mode, in_place: root_mean_square(x, weight, eps)
            )
        },
        "liger_kernel.ops.group_norm": {
            "LigerGroupNormFunction": SimpleNamespace(
                apply=lambda x, weight, bias, channels, groups, eps: torch.nn.functional.group_norm(
                    x, groups, weight, bias, eps
                )
            )
        },
    },
    "cuDNN frontend": {
        "cudnn": {},
        "cudnn.experimental": {},
        "cudnn.experimental.ops": {
            "layer_norm": torch.nn.functional.layer_norm,
            # (input, weight, bias, eps), and the shape is the weight's
            "rms_norm": lambda x, weight, bias=None, eps=1e-5: root_mean_square(x, weight, eps),
        },
    },
    "quack": {"quack": {}, "quack.rmsnorm": {"layernorm_fwd": norm, "rmsnorm": root_mean_square}},
    "flash-attn": {
        "flash_attn": {},
        "flash_attn.ops": {},
        "flash_attn.ops.triton": {},
        "flash_attn.ops.triton.layer_norm": {
            "layer_norm_fn": dropped_sum(norm),
            "rms_norm_fn": dropped_sum(lambda x, weight, bias, eps: root_mean_square(x, weight, eps)),
        },
    },
    "FlagGems": {"flag_gems": {"use_gems": lambda include: contextlib.nullcontext()}},
    "apex": {
        "apex": {},
        "apex.normalization": {
            "fused_layer_norm": SimpleNamespace(
                fused_layer_norm_affine=lambda x, weight, bias, shape, eps: norm(x, weight, bias, eps),
                fused_rms_norm_affine=lambda x, weight, shape, eps: root_mean_square(x, weight, eps),
            )
        },
    },
    "TransformerEngine": {
        "transformer_engine": {},
        "transformer_engine.pytorch": {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm},
    },
    "attorch": {
        "attorch": {
            "LayerNorm": LayerNorm,
            "RMSNorm": RMSNorm,
            "BatchNorm2d": torch.nn.BatchNorm2d,
            "Dropout": torch.nn.Dropout,
        }
    },
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("peer", PEERS[3:], ids=lambda peer: peer.name)
def test_adapters_compute_with_the_layers_own_parameters(monkeypatch, peer, name):
    """Their libraries need a GPU; here others of the same signatures stand in for them."""
    for module, functions in LIBRARIES[peer.name].items():
        monkeypatch.setitem(sys.modules, module, fake_library(module, **functions))
    with peer.around(name):
        subject, contestant = contestant_of(SMALL[name], peer)
        if contestant.call is None:
            assert name not in ("layer_norm", "rms_norm")
            return
        error = error_of(subject, contestant, name in peer.forward_only)
    assert error <= OPERATIONS[name].tolerance(SMALL[name])


def test_peers_that_are_not_installed_are_known_not_to_be():
    assert PEERS[0].name == peers.OURS
    assert all(peer.installed() for peer in PEERS[:3])
    missing = Peer("missing", lambda *_: None, "no_such_package", "no-such-package")
    assert not missing.installed()
    assert missing.version() is None


# The ledger


# which take a second each; the last has outputs without a gradient
SAMPLE = ("layer_norm bf16 40x16384", "dropout bf16 640x1024", "instance_norm bf16 4x40x64x64")


@functools.cache
def committed_ledger():
    return {
        (record["case"], record["direction"]): record
        for name in OPERATIONS
        for record in report.records_of(report.load(ROOT / "bench/results/no-gpu", "ledger")[name])
    }


def test_the_committed_ledger_has_every_case():
    directions = "forward", "backward"
    assert committed_ledger().keys() == {(str(c), d) for c in cases("ledger") for d in directions}


@pytest.mark.parametrize(
    "names",
    [SAMPLE, *(pytest.param([*map(str, cases("ledger", [n]))], marks=pytest.mark.slow) for n in OPERATIONS)],
    ids=["sample", *OPERATIONS],
)
def test_the_committed_ledger_is_what_the_kernels_move(tmp_path, names):
    # in a process of its own: with a GPU, the kernels of this one are not interpreted
    printed = programs.interpreted("ledger_again", tmp_path / "log", *names)
    measured = [json.loads(line) for line in printed.splitlines()]
    assert len(measured) == 2 * len(names)
    for record in measured:
        assert record == committed_ledger()[record["case"], record["direction"]]


# The command


def test_tables_align():
    assert tables.markdown(("name", "n"), [("a", 1), ("long name", 10.5)]) == (
        "| name      |    n |\n| --------- | ---: |\n| a         |    1 |\n| long name | 10.5 |"
    )


def test_parts_that_compile_with_results_in_a_file(tmp_path):
    """And the stub driver lets kernels be freed, which newer Tritons unload: a failure of that is printed."""
    done = programs.compiling("parts_that_compile", str(tmp_path))
    assert done.stderr == ""
    assert "group_norm_forward" in done.stdout.partition("## static: ")[2].partition("## host: ")[0]
    assert "normreg / plain" in done.stdout.partition("## host: ")[2]
    run = json.loads((tmp_path / "host/instance_norm.json").read_text())["runs"][0]
    assert run["environment"]["commit"] == "abc"
    samples = run["records"][0]["samples_us"]
    assert set(samples) == {"normreg", "plain launch", "torch"}
    assert all(len(times) == len(samples["torch"]) > 10 for times in samples.values())


def test_without_time_everything_is_left_out_and_said(tmp_path):
    status, printed = forked.bench(tmp_path / "log", "ledger", "--budget", "0")
    assert status == 0, printed
    assert "## ledger: " in printed
    assert "left out, because the budget was spent: layer_norm" in printed


def test_speed_says_that_it_needs_a_gpu(tmp_path):
    status, printed = forked.bench(tmp_path / "log", "speed")
    assert (status, printed) == (2, "speed: not measured. It needs a GPU, and none was found.\n")


@pytest.mark.slow
def test_everything_that_this_machine_can_show():
    done = bench("--operations", "dropout", "--budget", "5")
    assert done.returncode == 0, done.stderr
    for part in ("host", "static", "instructions", "ledger"):
        assert f"## {part}: " in done.stdout
    if not torch.cuda.is_available():
        assert done.stdout.endswith("speed and models: not measured. They need a GPU, and none was found.\n")


@pytest.fixture
def command_line(monkeypatch):
    """Sets the arguments of this process; what the command does to the environment is undone."""
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", ""))
    return lambda *arguments: monkeypatch.setattr(sys, "argv", ["python -m bench", *arguments])


@pytest.fixture
def commands(monkeypatch):
    """Command lines of the processes of parts, each of which ends at once with its part's status, or 0."""
    begun, statuses = [], {}

    def run(command):
        begun.append(command)
        return SimpleNamespace(returncode=statuses.get(command[3], 0))

    monkeypatch.setattr(__main__.subprocess, "run", run)
    return begun, statuses


@pytest.mark.parametrize("gpu", [False, True])
def test_everything_is_a_process_for_each_part(command_line, commands, monkeypatch, capsys, gpu):
    monkeypatch.setattr(__main__, "has_gpu", lambda: gpu)
    command_line("--budget", "5", "--out", "results", "--commit", "abc", "--json")
    assert __main__.main() == 0
    parts = ["host", "static", "instructions", "ledger"] + ["speed", "models"] * gpu
    for command, part in zip(commands[0], parts, strict=True):
        budget = command.pop(5)
        assert command == [
            sys.executable, "-m", "bench", part, "--budget", "--out", "results", "--commit", "abc", "--json",
        ]  # fmt: skip
        assert 4 < float(budget) <= 5
    said = "" if gpu else "speed and models: not measured. They need a GPU, and none was found.\n"
    assert capsys.readouterr().err == said


def test_a_part_that_fails_ends_everything(command_line, commands):
    begun, statuses = commands
    statuses["static"] = 3
    command_line("--operations", "dropout")
    assert __main__.main() == 3
    assert [command[3:] for command in begun][-1][-2:] == ["--operations", "dropout"]
    assert [command[3] for command in begun] == ["host", "static"]


def test_unknown_operations_are_named(command_line):
    command_line("static", "--operations", "softmax")
    with pytest.raises(SystemExit, match="--operations: softmax: expected some of layer_norm, "):
        __main__.main()


@pytest.mark.parametrize("part", [*__main__.PARTS, "report"])
def test_every_part_has_help(command_line, capsys, part):
    command_line(part, "--help")
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 0
    assert f"python -m bench {part}" in capsys.readouterr().out
