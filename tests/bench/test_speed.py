"""`python -m bench speed` without a GPU: what it measures, and what a failure leaves of it."""

import json
import os
import time

import forked
import stand_in_gpu
import torch
from speed_runs import run_speed
from speed_runs import stand_in as stand_in
from stand_in_gpu import CLOCKS, SMALL

from bench.harness import result_files
from bench.harness.budget import Budget
from bench.harness.worker import Worker
from bench.operations import OPERATIONS
from bench.perf import contest, speed
from bench.perf.peers import PEERS, Peer
from bench.perf.speed import compare
from bench.perf.speed.measuring import Measurer


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

    environment = result_files.environment("abc")
    paths = result_files.write(tmp_path / "SOME-GPU", "speed", records, ["a case"], environment)
    assert {path.stem for path in paths} == {"copy", *OPERATIONS}
    result_files.write(tmp_path / "SOME-GPU", "speed", records[:2], [], environment)
    assert len(json.loads((tmp_path / "SOME-GPU/speed/copy.json").read_text())["runs"]) == 2


class Compiled(torch.nn.Module):
    """A module like torch.compile's: it has `__len__`, which its layer has not."""

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
    """Results with a mask differ from peer to peer, so that only the others are shared."""
    made = []
    real = contest.float64_results
    monkeypatch.setattr(
        contest, "float64_results", lambda layer, *tensors: made.append(layer) or real(layer, *tensors)
    )
    again = Peer("again", lambda operation, layer: layer)
    run_speed(monkeypatch, again, operations=["layer_norm", "batch_norm", "dropout"])
    assert len(made) == 2


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
    """In a single process the next capture would be refused, or nobody would be left."""
    peers = [Peer("capture", fails_in_capture), Peer("death", dies), Peer("hang", hangs), *PEERS[:2]]
    turns = [("capture", 60), ("torch eager", 60), ("hang", 3), ("death", 60), ("normreg", 60)]
    records = {}
    with forked.workers(), Worker(stand_in_gpu.measurer) as measurer:
        for name, limit in turns:
            peer = next(peer for peer in peers if peer.name == name)
            case = SMALL["layer_norm"]
            wanted = case, peer, ("forward", "backward")
            records[name] = speed.measure(measurer, *wanted, limit, Budget())
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
