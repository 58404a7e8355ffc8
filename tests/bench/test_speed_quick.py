"""`python -m bench speed --quick` without a GPU: its cases, their order, and how it ends in time."""

import os
import time

import pytest
from speed_runs import again, arguments_of, run_speed
from speed_runs import stand_in as stand_in
from stand_in_gpu import SMALL

from bench.harness.budget import Budget
from bench.harness.worker import Late
from bench.operations import OPERATIONS, cases
from bench.operations.quick import DIRECTIONS, QUICK
from bench.perf import speed
from bench.perf.peers import PEERS, Peer
from bench.perf.speed import compare, estimate
from bench.perf.speed.measuring import Measurer

QUICK_NAMES = ("rms_norm", "batch_norm", "dropout")


@pytest.fixture
def quick(monkeypatch, stand_in):
    """Puts small cases in place of the quick ones; returns the calls that were compiled ahead."""
    ahead = []
    monkeypatch.setattr(speed, "QUICK", tuple(SMALL[name] for name in QUICK_NAMES))
    monkeypatch.setattr(speed.side_by_side, "together", lambda make, calls, **_: ahead.extend(calls))
    return ahead


def test_quick_measures_ours_and_eager_on_all_cases_first(monkeypatch, quick):
    records = run_speed(monkeypatch, again("third"), again("fourth"), quick=True)
    assert [record["bytes"] // 2 for record in records if record["operation"] == "copy"] == [2**28, 2**30]
    order = [(record["operation"], record["peer"]) for record in records if "peer" in record]
    first = [(name, peer) for name in QUICK_NAMES for peer in ("normreg", "torch eager")]
    then = [(name, peer) for name in ("rms_norm", "batch_norm") for peer in ("third", "fourth")]
    assert order == [*first, *then]
    assert all(list(record["times"]) == ["forward", "backward"] for record in records if "peer" in record)
    compiled = [(case.operation, peer.name) for method, case, peer in quick if method == "compile"]
    assert compiled[:3] == [(name, "normreg") for name in QUICK_NAMES]
    assert {peer for _, peer in compiled} == {"normreg", "third", "fourth"}
    # the first call found its kernels compiled, so that its time is not one of compiling
    assert {row[4] for row in compare.cost_rows(records)} == {"-"}


def test_quick_ends_in_time_and_names_what_it_left_out(monkeypatch, quick, capsys):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    real = speed.measure

    def measure(*arguments):
        clock[0] += 10
        return real(*arguments)

    monkeypatch.setattr(speed, "measure", measure)
    budget = Budget()
    records = run_speed(monkeypatch, again("third"), budget=budget, quick=True)
    # 60 s of two peers on three cases are over, of 64: the next measurement begins, and would be ended
    peers = [record["peer"] for record in records if "peer" in record]
    assert peers == ["normreg", "torch eager"] * 3 + ["third"]
    assert budget.left_out == [f"{SMALL[name]} (third)" for name in ("batch_norm", "dropout")]
    assert "a full run has 16 cases for 3 peers: about 1 min, estimated" in capsys.readouterr().err


@pytest.mark.parametrize(("in_time", "found"), [(0, []), (4, ["forward"])])
def test_of_a_measurement_that_the_budget_ends_is_left_what_was_found(monkeypatch, quick, in_time, found):
    """Calls: the first, one for memory, two for the forward's time, then those for the backward's."""
    budget, calls = Budget(), []

    def slow(operation, layer):
        def call(x):
            calls.append(x)
            if len(calls) > in_time:
                budget.end_in(-1)
                raise Late("no answer in 0 s")
            return layer(x)

        return call

    records = run_speed(monkeypatch, Peer("slow", slow), quick=True, operations=["rms_norm"], budget=budget)
    slows = [record for record in records if record.get("peer") == "slow"]
    assert [list(record["times"]) for record in slows] == [found] * bool(found)
    assert not any("refused" in record for record in records)
    assert budget.left_out == [f"{SMALL['rms_norm']} (slow)"]


def test_a_budget_that_is_given_is_the_budget_of_quick(monkeypatch, quick):
    budget = Budget(500)
    monkeypatch.setattr(speed, "PEERS", PEERS[:2])
    list(speed.run(arguments_of(quick=True, budget=500), budget))
    assert budget.left() > 400


CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS")


@pytest.mark.parametrize("is_quick", [False, True])
def test_a_full_run_compiles_anew_and_a_quick_one_what_it_must(monkeypatch, quick, is_quick):
    for name in CACHES:
        monkeypatch.setenv(name, "given")
    seen = {}
    peer = Peer("looks", lambda operation, layer: seen.update({n: os.environ[n] for n in CACHES}))
    run_speed(monkeypatch, peer, quick=is_quick, operations=["rms_norm"])
    triton, inductor, threads = seen.values()
    if is_quick:
        assert (triton, inductor, threads) == ("given", "given", "1")
    else:
        assert "given" not in (triton, inductor)
        assert threads == "given"
        assert not os.path.exists(os.path.dirname(triton))  # any more
    assert all(os.environ[name] == "given" for name in CACHES)


def test_quick_has_the_cases_that_are_promised_and_the_full_run_has_them_all():
    names = list(map(str, QUICK))
    assert len(names) == len(set(names)) == 31
    assert set(names) <= set(map(str, cases("speed")))
    assert names[:2] == ["rms_norm bf16 16384x4096", "layer_norm bf16 16384x4096"]
    assert "batch_norm fp16 4x128x1024x1024" in names
    assert sum("channels_last" in name for name in names) == 7
    for case in QUICK:
        assert set(DIRECTIONS) <= set(OPERATIONS[case.operation].passes)


def test_first_calls_ahead_leave_compiled_kernels(stand_in):
    """`compile` makes the call that the timed process makes first, and no other."""
    calls = []

    def counted(operation, layer):
        return lambda x: calls.append(x.requires_grad) or layer(x)

    assert list(Measurer().compile(SMALL["layer_norm"], Peer("counted", counted))) == []
    assert calls == [True]
    assert list(Measurer().compile(SMALL["dropout"], Peer("absent", lambda *_: None))) == []


def test_an_estimate_grows_with_bytes_and_peers(monkeypatch):
    large, small = QUICK[12], QUICK[0]
    assert large.bytes == 2**30
    eager, compiled = PEERS[1], PEERS[2]
    first = estimate.seconds(small, [eager], DIRECTIONS, 3000.0)
    assert first < 1 < estimate.seconds(small, [compiled], DIRECTIONS, 3000.0)
    assert estimate.seconds(large, [eager], DIRECTIONS, 3000.0) > first
    # 27 replays and 13 calls of 5 GiB, 54 flushes, 40 passes over 4 GiB, and 26 calls of the host
    moved = 40 * 5 * 2**30 + 54 * 2e8 + 160 * 2**30
    assert estimate.seconds(large, [eager], DIRECTIONS, 3000.0) == pytest.approx(
        0.1 + moved / 3e12 + 26e-4, rel=1e-6
    )
