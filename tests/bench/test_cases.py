"""The benchmark's cases: what they cover, their names, and the order that a budget cuts from."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stand_in_gpu import SMALL

import normreg
from bench.harness.budget import Budget
from bench.operations import OPERATIONS, Case, cases
from bench.operations.case import DTYPES, cases_of
from bench.perf import contest

RESULTS = Path(__file__).parents[2] / "bench/results/no-gpu"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("proof", ["ledger", "static", "instructions", "host", "speed"])
def test_every_operation_has_cases_and_they_take_turns(proof):
    chosen = cases(proof)
    assert len(chosen) == len(set(chosen))
    # where results are committed, those of which there are some; else all
    expected = {file.stem for file in (RESULTS / proof).glob("*.json")} or set(OPERATIONS)
    assert {case.operation for case in chosen[: len(expected)]} == expected
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
@pytest.mark.parametrize("proof", ["ledger", "static", "instructions", "exactness", "host", "speed"])
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
    (sliced,) = cases_of("layer_norm", "2x3x4 sliced")
    assert str(sliced) == "layer_norm bf16 2x3x4 sliced"
    assert sliced.like_input(torch.randn, "cpu").stride() == (3 * 68, 68, 1)
    assert sliced.like_output(torch.randn, "cpu").is_contiguous()
    assert OPERATIONS["batch_norm"].least_bytes(case, "backward") == 3 * 2 * 120


def test_a_budget_leaves_out_what_would_end_too_late(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    budget, done = Budget(10), []
    for duration in budget.within([1, 4, 3, 3, 1]):
        done.append(duration)
        clock[0] += duration
    assert done == [1, 4, 3]  # 8 seconds are over, and the slowest took 4
    assert budget.left_out == ["3", "1"]
    budget = Budget(10)
    assert budget.left() == 10
    budget.end_in(2)
    for duration in budget.within([1, 3, 1], ended=True):
        done.append(duration)
        clock[0] += duration
    assert done == [1, 4, 3, 1, 3]  # the second began in time, and is ended by whoever took it
    assert budget.left_out == ["1"]
    assert list(Budget(None).within([1, 2])) == [1, 2]


@pytest.mark.parametrize(("name", "dtype"), [("batch_norm", torch.float32), ("layer_norm", torch.float16)])
def test_batch_norm_has_the_parameters_of_mixed_precision(name, dtype):
    layer = contest.draw_layer(replace(SMALL[name], dtype=torch.float16), DEVICE)
    assert {tensor.dtype for tensor in layer.state_dict().values()} - {torch.int64} == {dtype}
    fused = contest.draw_layer(replace(SMALL["batch_norm_act"], dtype=torch.float16), DEVICE)
    assert (fused.norm.weight.dtype, fused.residual.dtype) == (torch.float32, torch.float16)
