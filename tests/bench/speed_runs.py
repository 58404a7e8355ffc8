"""Runs of `python -m bench speed` in this process, on a GPU that is a stand-in."""

from types import SimpleNamespace

import pytest
import stand_in_gpu
from stand_in_gpu import CLOCKS

from bench.harness import worker
from bench.harness.budget import Budget
from bench.harness.worker import Failed, Late
from bench.operations import OPERATIONS
from bench.perf import speed
from bench.perf.peers import PEERS, Peer


class Here(worker.Here):
    """Serves in this process; a failure makes a new Measurer and ends the capture, as a new process would."""

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
    return list(speed.run(arguments_of(**changes), budget or Budget()))


def again(name):
    return Peer(name, lambda operation, layer: layer if operation != "dropout" else None)
