"""`python -m bench speed` without a GPU: what it measures, in which order, what a failure leaves of it."""

import json
import os
import time
from types import SimpleNamespace

import forked
import pytest
import stand_in_gpu
import torch
from stand_in_gpu import CLOCKS, SMALL

from bench.operations import OPERATIONS, cases
from bench.operations.quick import DIRECTIONS, QUICK
from bench.perf import compare, estimate, harness, measuring, speed, worker
from bench.perf.measuring import Measurer
from bench.perf.peers import PEERS, Peer
from bench.perf.worker import Failed, Late, Worker


class Here(worker.Here):
    """A failure makes another of what serves, as in a process, and ends the capture."""

    def start(self):
        if self.served is None:
            CLOCKS.capturing = False
        super().start()

    def call(self, *arguments, **limit):
        try:
            yield from super().call(*arguments, **limit)
        except Failed as failure:
            raise (failure.__cause__ if isinstance(failure.__cause__, Late) else failure) from None


@pytest.fixture
def stand_in(monkeypatch):
    stand_in_gpu.install(monkeypatch.setattr)
    monkeypatch.setattr(CLOCKS, "capturing", False)
    monkeypatch.setattr(speed, "Worker", Here)
    for name, operation in stand_in_gpu.small_operations().items():
        monkeypatch.setitem(OPERATIONS, name, operation)


def arguments_of(**changes):
    return SimpleNamespace(
        **(dict(operations=None, peers=None, shard="1/1", quick=False, budget=None) | changes)
    )


def run_speed(monkeypatch, *extra, budget=None, **changes):
    monkeypatch.setattr(speed, "PEERS", (*PEERS[:2], *extra))
    return list(speed.run(arguments_of(**changes), budget or harness.Budget()))


def broken(operation, layer):
    def call(x):
        raise RuntimeError("no kernel image\nmore")

    return call


def not_importable(operation, layer):
    import no_such_package  # noqa: F401


def test_a_run_of_speed(monkeypatch, stand_in, tmp_path):
    extra = (
        Peer("wrong", lambda operation, layer: lambda x: 2 * layer(x)),
        Peer("broken", broken),
        Peer("not importable", not_importable),
        Peer("absent", lambda operation, layer: None),
    )
    records = run_speed(monkeypatch, *extra)
    assert json.loads(json.dumps(records)) == records
    by_peer = {(record["operation"], record["peer"]): record for record in records if "peer" in record}
    assert len(by_peer) == 5 * len(OPERATIONS)
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
        assert by_peer[name, "not importable"]["refused"].startswith("ModuleNotFoundError: No module named")

    rows = compare.rows(records)
    assert len(rows) == sum(len(operation.passes) for operation in OPERATIONS.values())
    assert {row[6] for row in rows} == {"torch eager"}
    assert "layer_norm fp32 6x40" in speed.table(records)
    assert len(compare.cost_rows(records)) == 2 * len(OPERATIONS)
    assert len(compare.refusals(records)) == 3 * len(OPERATIONS)

    paths = harness.write(tmp_path / "SOME-GPU", "speed", records, ["a case"], harness.environment("abc"))
    assert {path.stem for path in paths} == {"copy", *OPERATIONS}
    harness.write(tmp_path / "SOME-GPU", "speed", records[:2], [], harness.environment("abc"))
    assert len(json.loads((tmp_path / "SOME-GPU/speed/copy.json").read_text())["runs"]) == 2


class Compiled(torch.nn.Module):
    """As torch.compile makes them: with a length that its layer does not have."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)

    def __len__(self):
        raise TypeError("LayerNorm does not support len()")


def test_a_compiled_layer_is_called(monkeypatch, stand_in):
    compiled = Peer("compiled", lambda operation, layer: Compiled(layer))
    *_, record = run_speed(monkeypatch, compiled, operations=["layer_norm"])
    assert (record["peer"], record.get("refused")) == ("compiled", None)


def test_shards_share_the_cases(monkeypatch, stand_in):
    monkeypatch.setattr(
        speed, "measure", lambda measurer, case, peer, *_: dict(case=str(case), peer=peer.name)
    )
    seen = []
    for shard in ("1/2", "2/2"):
        records = run_speed(monkeypatch, shard=shard)
        seen += [record["case"] for record in records if record.get("peer") == "normreg"]
    assert sorted(seen) == sorted(map(str, SMALL.values()))


def test_results_in_float64_serve_all_peers_of_a_case(monkeypatch, stand_in):
    """Of those without a mask, whose results differ from peer to peer."""
    made = []
    real = measuring.float64_results
    monkeypatch.setattr(
        measuring, "float64_results", lambda layer, *tensors: made.append(layer) or real(layer, *tensors)
    )
    again = Peer("again", lambda operation, layer: layer)
    run_speed(monkeypatch, again, operations=["layer_norm", "batch_norm", "dropout"])
    assert len(made) == 2


# Failures, in processes of their own


def fails_in_capture(operation, layer):
    def call(x):
        if CLOCKS.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        return layer(x)

    return call


def dies(operation, layer):
    return lambda x: os._exit(9)


def hangs(operation, layer):
    return lambda x: time.sleep(1000)


def test_what_fails_spoils_nothing_after_it():
    """Fails where all is measured in one process: the next capture is refused, or nobody is left."""
    peers = [Peer("capture", fails_in_capture), Peer("death", dies), Peer("hang", hangs), *PEERS[:2]]
    turns = [("capture", 60), ("torch eager", 60), ("hang", 3), ("death", 60), ("normreg", 60)]
    records = {}
    with forked.workers(), Worker(stand_in_gpu.measurer) as measurer:
        for name, limit in turns:
            peer = next(peer for peer in peers if peer.name == name)
            case = SMALL["layer_norm"]
            wanted = case, peer, ("forward", "backward")
            records[name] = speed.measure(measurer, *wanted, limit, harness.Budget())
    assert records["capture"]["refused"] == "RuntimeError: operation not permitted when stream is capturing"
    assert records["capture"]["error"] <= 1e-4  # found before
    assert records["death"]["refused"] == "the process died: exit code 9"
    assert records["hang"]["refused"] == "no answer in 3 s"
    for name in ("torch eager", "normreg"):
        assert "refused" not in records[name]
        assert list(records[name]["times"]) == ["forward", "backward"]


def test_a_peer_that_disagrees_leaves_its_process(monkeypatch, stand_in):
    made = []

    def make():
        made.append(Measurer())
        return made[-1]

    monkeypatch.setattr(speed, "Measurer", make)
    wrong = Peer("wrong", lambda operation, layer: lambda x: 2 * layer(x))
    others = wrong, Peer("not importable", not_importable)
    records = run_speed(monkeypatch, *others, operations=["layer_norm", "dropout"])
    assert sum("refused" in record for record in records) == 4
    assert len(made) == 1


# Quick

QUICK_NAMES = ("rms_norm", "batch_norm", "dropout")


@pytest.fixture
def quick(monkeypatch, stand_in):
    """Small cases in place of the quick ones, and what was compiled ahead."""
    ahead = []
    monkeypatch.setattr(speed, "QUICK", tuple(SMALL[name] for name in QUICK_NAMES))
    monkeypatch.setattr(speed.side_by_side, "together", lambda make, calls, **_: ahead.extend(calls))
    return ahead


def again(name):
    return Peer(name, lambda operation, layer: layer if operation != "dropout" else None)


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
    monkeypatch.setattr(harness.time, "monotonic", lambda: clock[0])
    real = speed.measure

    def measure(*arguments):
        clock[0] += 10
        return real(*arguments)

    monkeypatch.setattr(speed, "measure", measure)
    budget = harness.Budget()
    records = run_speed(monkeypatch, again("third"), budget=budget, quick=True)
    # 60 s of two peers on three cases are over, of 64: the next measurement begins, and would be ended
    peers = [record["peer"] for record in records if "peer" in record]
    assert peers == ["normreg", "torch eager"] * 3 + ["third"]
    assert budget.left_out == [f"{SMALL[name]} (third)" for name in ("batch_norm", "dropout")]
    assert "a full run has 11 cases for 3 peers: about 1 min, estimated" in capsys.readouterr().err


@pytest.mark.parametrize(("in_time", "found"), [(0, []), (4, ["forward"])])
def test_of_a_measurement_that_the_budget_ends_is_left_what_was_found(monkeypatch, quick, in_time, found):
    """The first call, one for memory, two for the time of the forward, then those for the backward's."""
    budget, calls = harness.Budget(), []

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
    budget = harness.Budget(500)
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
    """The call that the timed process makes first, and nothing else."""
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
