"""The benchmark without a GPU: its cases, gates, records and reports, with stand-ins for the clocks."""

import contextlib
import json
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import normreg
from bench import __main__, classes, compare, harness, ledger, peers, report, speed, tables, timing
from bench.operations import OPERATIONS, Case, cases
from bench.operations.case import DTYPES
from bench.peers import PEERS, Peer

ROOT = Path(__file__).parent.parent

SMALL = {
    "layer_norm": Case("layer_norm", (6, 40), torch.float32, origin="test"),
    "rms_norm": Case("rms_norm", (6, 40), torch.float32),
    "layer_norm_channels": Case("layer_norm_channels", (3, 6, 5, 4), torch.float32),
    "batch_norm": Case("batch_norm", (4, 6, 5, 3), torch.float32, channels_last=True),
    "batch_norm_act": Case("batch_norm_act", (4, 6, 5, 3), torch.float32, layer="batch_norm+add+relu"),
    "group_norm": Case("group_norm", (3, 64, 5, 3), torch.float32),
    "instance_norm": Case("instance_norm", (3, 6, 5, 7), torch.float32),
    "dropout": Case("dropout", (64, 128), torch.float32),
    "dropout_add": Case("dropout_add", (400, 3, 12), torch.float32, layer="scaled drop path+add"),
    "dropout_add_norm": Case(
        "dropout_add_norm", (40, 64), torch.float32, layer="prenorm dropout+add+LayerNorm"
    ),
    "bias_act_dropout": Case("bias_act_dropout", (64, 128), torch.float32, layer="bias+gelu+dropout"),
}


@pytest.fixture(autouse=True)
def guarded_memory():
    """Not here: the ledger would count what fills and surrounds the tensors."""


def bench(*arguments):
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


# Cases


@pytest.mark.parametrize("proof", ["ledger", "static", "host", "speed"])
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
@pytest.mark.parametrize("proof", ["ledger", "static", "host", "speed"])
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
    assert list(harness.Budget(None).within([1, 2])) == [1, 2]


# Gates


def contestant_of(case, peer):
    torch.manual_seed(1)
    reference = speed.draw_layer(case, "cpu")
    inputs = speed.draw(case, 2, "cpu")
    layer = OPERATIONS[case.operation].layer(torch.nn, case, dtype=case.dtype)
    layer.load_state_dict(reference.state_dict())
    return reference, speed.Contestant(peer.adapt(case.operation, layer), layer, inputs)


def error_of(operation, reference, contestant, forward_only=False):
    return speed.error_of(operation, reference, contestant, *speed.first_call(contestant, forward_only))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("peer", PEERS[:2], ids=lambda peer: peer.name)
def test_normreg_and_torch_agree_with_float64(name, dtype, peer):
    case = replace(SMALL[name], dtype=DTYPES[dtype])
    reference, contestant = contestant_of(case, peer)
    error = error_of(OPERATIONS[name], reference, contestant)
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
    reference, contestant = contestant_of(case, peer)
    error = error_of(OPERATIONS["dropout"], reference, contestant)
    assert error <= OPERATIONS["dropout"].tolerance(case)


@pytest.mark.parametrize("name", SMALL)
def test_a_wrong_result_is_refused(name):
    wrong = Peer("wrong", lambda operation, layer: WRONG[operation](layer))
    reference, contestant = contestant_of(SMALL[name], wrong)
    if name == "layer_norm":  # without its bias
        contestant.layer.register_parameter("bias", None)
    error = error_of(OPERATIONS[name], reference, contestant)
    assert not error <= OPERATIONS[name].tolerance(SMALL[name])


def test_dropout_with_another_mask_in_backward_is_refused():
    class TwoMasks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.nn.functional.dropout(x, 0.1)

        @staticmethod
        def backward(ctx, dy):
            return torch.nn.functional.dropout(dy, 0.1)

    reference, contestant = contestant_of(SMALL["dropout"], Peer("two", lambda *_: TwoMasks.apply))
    assert error_of(OPERATIONS["dropout"], reference, contestant) > 0.1


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
        reference, contestant = contestant_of(SMALL[name], peer)
        if contestant.call is None:
            assert name not in ("layer_norm", "rms_norm")
            return
        error = error_of(OPERATIONS[name], reference, contestant, name in peer.forward_only)
    assert error <= OPERATIONS[name].tolerance(SMALL[name])


def test_peers_that_are_not_installed_are_known_not_to_be():
    assert PEERS[0].name == peers.OURS
    assert all(peer.installed() for peer in PEERS[:3])
    missing = Peer("missing", lambda *_: None, "no_such_package", "no-such-package")
    assert not missing.installed()
    assert missing.version() is None


# Records


@pytest.fixture
def stand_in_clocks(monkeypatch):
    """Everything of `timing` that needs a GPU; the calls are made, once each."""
    seconds = iter(range(1, 10**6))

    def sample(calls, stream):
        for call in calls:
            call()
        times = [float(next(seconds)) for _ in range(5)]
        return dict(device_us=times, end_to_end_us=[2 * t for t in times])

    monkeypatch.setattr(timing, "DEVICE", "cpu")
    monkeypatch.setattr(timing, "sets", lambda least_bytes: 2)
    monkeypatch.setattr(timing, "sample", sample)
    monkeypatch.setattr(timing, "wait", lambda: None)
    monkeypatch.setattr(timing, "side_stream", contextlib.nullcontext)
    monkeypatch.setattr(timing, "copy_bandwidth", lambda size: [1000.0, 1001.0, 1002.0])
    monkeypatch.setattr(
        timing, "memory", lambda forward, backward: (backward and backward(forward())) and (1, 2)
    )
    for name, operation in OPERATIONS.items():
        monkeypatch.setitem(OPERATIONS, name, replace(operation, speed=(SMALL[name],)))


def run_speed(monkeypatch, *extra):
    monkeypatch.setattr(speed, "PEERS", (*PEERS[:2], *extra))
    arguments = SimpleNamespace(operations=None, peers=None, shard="1/1")
    return list(speed.run(arguments, harness.Budget()))


def broken(operation, layer):
    def call(x):
        raise RuntimeError("no kernel image\nmore")

    return call


def test_a_run_of_speed(monkeypatch, stand_in_clocks, tmp_path):
    extra = (
        Peer("wrong", lambda operation, layer: lambda x: 2 * layer(x)),
        Peer("broken", broken),
        Peer("absent", lambda operation, layer: None),
    )
    records = run_speed(monkeypatch, *extra)
    assert json.loads(json.dumps(records)) == records
    by_peer = {(record["operation"], record["peer"]): record for record in records if "peer" in record}
    assert len(by_peer) == 4 * len(OPERATIONS)
    for name, operation in OPERATIONS.items():
        for peer in ("normreg", "torch eager"):
            record = by_peer[name, peer]
            assert list(record["times"]) == list(operation.passes)
            assert record["error"] <= 1e-4
            assert "refused" not in record
            assert record["copy_gb_per_s"] == 1001
        assert by_peer[name, "wrong"]["refused"].startswith("differs from float64 by ")
        assert by_peer[name, "wrong"]["times"] == {}
        assert by_peer[name, "broken"]["refused"] == "RuntimeError: no kernel image"

    rows = compare.rows(records)
    assert len(rows) == sum(len(operation.passes) for operation in OPERATIONS.values())
    assert {row[6] for row in rows} == {"torch eager"}
    assert "layer_norm fp32 6x40" in speed.table(records)
    assert len(compare.cost_rows(records)) == 2 * len(OPERATIONS)
    assert len(compare.refusals(records)) == 2 * len(OPERATIONS)

    paths = harness.write(tmp_path / "SOME-GPU", "speed", records, ["a case"], harness.environment("abc"))
    assert {path.stem for path in paths} == {"copy", *OPERATIONS}
    harness.write(tmp_path / "SOME-GPU", "speed", records[:2], [], harness.environment("abc"))
    assert len(json.loads((tmp_path / "SOME-GPU/speed/copy.json").read_text())["runs"]) == 2


def test_shards_share_the_cases(monkeypatch, stand_in_clocks):
    monkeypatch.setattr(speed, "PEERS", PEERS[:1])
    seen = []
    for shard in ("1/2", "2/2"):
        arguments = SimpleNamespace(operations=None, peers=None, shard=shard)
        seen += [record["case"] for record in speed.run(arguments, harness.Budget()) if "peer" in record]
    assert sorted(seen) == sorted(map(str, SMALL.values()))


# Reports


def recorded(case, peer, microseconds, **changes):
    times = {"forward": dict(device_us=[microseconds] * 5, end_to_end_us=[10 + microseconds] * 5)}
    record = dict(operation="layer_norm", case=case, peer=peer, times=times, copy_gb_per_s=4000.0)
    record |= dict(kept_bytes=2**19, peak_bytes=2**22, first_call_s=1.5, compilations=3, error=0.001)
    return record | dict(least_bytes={"forward": 2_000_000}) | changes


RECORDS = [
    recorded("wide", "normreg", 1.0),
    recorded("wide", "torch eager", 2.0),
    recorded("wide", "liger-kernel", 1.5),
    recorded("narrow", "normreg", 4.0),
    recorded("narrow", "torch eager", 2.0),
    recorded("narrow", "apex", 9.0, times={}, refused="differs from float64 by 0.5"),
]


def test_speed_up_is_over_the_best_of_the_others_and_losses_are_losses():
    wide, narrow = compare.comparisons(RECORDS)
    assert (wide.best, wide.speed_up, wide.gb_per_s, wide.copy_fraction) == ("liger-kernel", 1.5, 2000, 0.5)
    assert wide.end_to_end_speed_up == 11.5 / 11
    assert (narrow.best, narrow.speed_up) == ("torch eager", 0.5)
    assert compare.geometric_mean([0.5, 2.0]) == pytest.approx(1)
    (alone,) = compare.comparisons(RECORDS[:1])
    assert alone.speed_up is None
    assert compare.comparisons(RECORDS[1:2]) == []


STEPS = [
    dict(
        operation="gpt2",
        case="GPT-2, input 8x1024",
        kept_bytes=2**20,
        variant=variant,
        layers_replaced=0,
        step_ms=[milliseconds] * 5,
        peak_bytes=2**30,
        loss_difference=1e-6,
        loss_yardstick=2e-6,
        error=None,
        loss_error=None,
    )
    for variant, milliseconds in (("torch.nn", 30.0), ("normreg", 20.0), ("torch.compile", 24.0))
]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    folder = tmp_path / "bench/results"
    environment = harness.environment("0123456789abcdef") | dict(gpu="SOME GPU")
    harness.write(folder / "SOME-GPU", "speed", RECORDS, ["a wider case"], environment)
    harness.write(folder / "SOME-GPU", "models", STEPS, [], environment)
    copies = [dict(operation="copy", case="copy", bytes=2**21, gb_per_s=[4000.0, 4001.0])]
    harness.write(folder / "SOME-GPU", "speed", copies, [], environment)
    marks = report.BEGIN, report.END, classes.BEGIN, classes.END
    (tmp_path / "README.md").write_text("# Title\n{}\nold\n{}\n{}\nold\n{}\nrest\n".format(*marks))
    return folder


def test_a_report_of_recorded_results(results, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = SimpleNamespace(results=results, readme=tmp_path / "README.md")
    assert report.run(arguments) == 0
    written = (results / "SOME-GPU/report.md").read_text()
    assert "commit 0123456789ab, SOME GPU" in written
    assert (
        "| wide   | forward   | 1.0 | 1.0-1.0 | 2000 |       50% | liger-kernel | 1.5 |     1.50 |" in written
    )
    assert (
        "| wide   | normreg      |                  0.50 |     4.00 |         1.50 |            3 |"
        in written
    )
    assert "differs from float64 by 0.5" in written
    assert "Left out, because the budget was spent: a wider case" in written
    assert (results / "SOME-GPU/layer_norm.png").stat().st_size > 10_000

    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("# Title\n")
    assert readme.endswith(f"{classes.END}\nrest\n")
    assert "old" not in readme
    (layer_norm,) = [line for line in readme.splitlines() if line.startswith("| SOME GPU | layer_norm")]
    cells = [cell.strip() for cell in layer_norm.strip("|").split("|")]
    assert cells == ["SOME GPU", "layer_norm", "forward", "2", "0.87", "0.50", "1.50", "31%"]
    (gpt2,) = [line for line in readme.splitlines() if "GPT-2" in line]
    cells = [cell.strip() for cell in gpt2.strip("|").split("|")]
    assert cells[2:] == ["20.00 (20.00-20.00)", "1.20x", "1.0e-06", "2.0e-06"]
    assert "24.00 (24.00-24.00)" in written
    (dropout,) = [line for line in readme.splitlines() if "| dropout " in line]
    assert dropout.count("not measured") == 6


def test_a_run_that_is_repeated_counts_once(results):
    harness.write(results / "SOME-GPU", "speed", [recorded("wide", "normreg", 0.5)], [], {})
    records = report.records_of(report.load(results / "SOME-GPU", "speed")["layer_norm"])
    assert len(records) == len(RECORDS)
    assert compare.comparisons(records)[0].speed_up == 3


def test_without_its_marks_a_readme_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("# Title\n")
    with pytest.raises(SystemExit, match="put them where results go"):
        report.fill(tmp_path / "README.md", "new\n")


def test_the_section_of_readme_is_what_report_writes():
    text = (ROOT / "README.md").read_text()
    section = text.split(report.BEGIN + "\n")[1].split(report.END)[0]
    assert section == report.readme_section(ROOT / "bench/results")
    assert text.split(classes.BEGIN + "\n")[1].split(classes.END)[0] == classes.section()


def test_the_committed_ledger_is_what_the_kernels_move():
    """Of the cases that the interpreter runs in seconds."""
    committed = {
        (record["case"], record["direction"]): record
        for name in OPERATIONS
        for record in report.records_of(report.load(ROOT / "bench/results/no-gpu", "ledger")[name])
    }
    assert {case for case, _ in committed} == set(map(str, cases("ledger")))
    for name in ("layer_norm bf16 40x16384", "dropout bf16 640x1024"):
        (case,) = [case for case in cases("ledger") if str(case) == name]
        for record in ledger.measure(case):
            assert record == committed[name, record["direction"]]


# The command


def test_tables_align():
    assert tables.markdown(("name", "n"), [("a", 1), ("long name", 10.5)]) == (
        "| name      |    n |\n| --------- | ---: |\n| a         |    1 |\n| long name | 10.5 |"
    )


FREED = """
import gc
import torch
from bench import stub_driver
from normreg.kernels import group_norm, launch

record = stub_driver.install()
group_norm.group_norm_forward(torch.zeros(2, 4, 8), None, None, 2, 1e-5, torch.float32, False)
assert record.compiled == [name for name, _ in record.launched] == ["group_norm_forward_kernel"]
launch.forget_plans()
group_norm.group_norm_forward_kernel.device_caches.clear()
gc.collect()
"""


def test_the_stub_driver_lets_kernels_be_freed():
    """Which newer Tritons unload, and where that fails Python prints it instead of raising."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", FREED]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_one_part_with_results_in_a_file(tmp_path):
    done = bench("host", "--operations", "dropout", "--out", tmp_path, "--commit", "abc")
    assert done.returncode == 0, done.stderr
    assert "normreg / plain" in done.stdout
    run = json.loads((tmp_path / "host/dropout.json").read_text())["runs"][0]
    assert run["environment"]["commit"] == "abc"
    samples = run["records"][0]["samples_us"]
    assert set(samples) == {"normreg", "plain launch", "torch"}
    assert all(len(times) == len(samples["torch"]) > 10 for times in samples.values())


def test_without_time_everything_is_left_out_and_said():
    done = bench("ledger", "--budget", "0")
    assert done.returncode == 0, done.stderr
    assert "left out, because the budget was spent: layer_norm" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_speed_says_that_it_needs_a_gpu():
    done = bench("speed")
    assert done.returncode == 2
    assert done.stderr == "speed: not measured. It needs a GPU, and none was found.\n"


def test_everything_that_this_machine_can_show():
    done = bench("--operations", "dropout", "--budget", "5")
    assert done.returncode == 0, done.stderr
    for part in ("host", "static", "ledger"):
        assert f"## {part}: " in done.stdout
    if not torch.cuda.is_available():
        assert done.stdout.endswith("speed and models: not measured. They need a GPU, and none was found.\n")


@pytest.fixture
def command_line(monkeypatch):
    """Sets the arguments of this process; what the command does to the environment is undone."""
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", ""))
    return lambda *arguments: monkeypatch.setattr(sys, "argv", ["python -m bench", *arguments])


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
