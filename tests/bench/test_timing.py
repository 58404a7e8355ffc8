"""The benchmark's clocks on a stand-in for the GPU: what they wait for, flush, keep and divide by."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from bench.perf.speed import timing


class Device:
    """Records what is asked of it, in order."""

    def __init__(self):
        self.log = []
        self.allocated = self.peak = 0

    def stand_in(self):
        def note(name):
            return lambda *_, **__: self.log.append(name)

        @contextlib.contextmanager
        def graph(graph, stream):
            self.log.append("capture")
            yield
            self.log.append("captured")

        event = lambda **_: SimpleNamespace(  # noqa: E731
            record=note("record"), synchronize=note("wait"), elapsed_time=lambda end: 6.0
        )
        return SimpleNamespace(
            CUDAGraph=lambda: SimpleNamespace(replay=note("replay")),
            graph=graph,
            Event=event,
            Stream=lambda: "a stream",
            stream=lambda stream: contextlib.nullcontext(),
            synchronize=note("synchronize"),
            reset_peak_memory_stats=note("reset"),
            memory_allocated=lambda: self.allocated,
            max_memory_allocated=lambda: self.peak,
            get_device_properties=lambda device: SimpleNamespace(L2_cache_size=1024),
        )


@pytest.fixture
def device_(monkeypatch):
    device = Device()
    monkeypatch.setattr(
        timing, "torch", SimpleNamespace(cuda=device.stand_in(), zeros=torch.zeros, float32=torch.float32)
    )
    monkeypatch.setattr(timing, "DEVICE", "cpu")
    for kept in (timing._other_data, timing._stream):
        kept.cache_clear()
    yield device
    for kept in (timing._other_data, timing._stream):
        kept.cache_clear()


def test_calls_are_made_on_one_stream(device_, monkeypatch):
    """All calls share a stream, because memory freed on one stream does not serve another."""
    monkeypatch.setattr(timing.torch.cuda, "Stream", object)
    with timing.side_stream() as first:
        assert device_.log == ["synchronize"]
    with timing.side_stream() as second:
        assert second is first
    assert device_.log == ["synchronize"] * 4


def test_device_time_is_that_of_replays_a_call(device_, monkeypatch):
    flush = timing.flush
    monkeypatch.setattr(timing, "flush", lambda: (flush(), device_.log.append("flush")))
    calls = [lambda name=name: device_.log.append(name) for name in "abc"]
    samples = timing.device_time(calls, "a stream")
    assert samples == [6.0 * 1e3 / 3] * timing.REPLAYS
    assert device_.log[:5] == ["capture", "a", "b", "c", "captured"]
    # the flush is outside of what is timed, and before each replay
    assert device_.log[5:] == ["flush", "record", "replay", "record", "wait"] * (timing.REPLAYS + 2)
    assert timing._other_data().numel() * 4 == 4 * 1024


def test_end_to_end_time_waits_for_the_device(device_):
    samples = timing.end_to_end_time([lambda: device_.log.append("call")] * 3)
    assert len(samples) == timing.LOOPS
    assert device_.log == ["synchronize", *["call"] * 3, "synchronize"] * (timing.LOOPS + 1)
    assert all(sample > 0 for sample in samples)


def test_a_sample_warms_up_before_it_captures(device_):
    sample = timing.sample([lambda: device_.log.append("call")], "a stream")
    assert device_.log[:3] == ["call", "call", "synchronize"]
    assert set(sample) == {"device_us", "end_to_end_us"}


def test_memory_kept_is_beside_the_output(device_):
    y = torch.zeros(10)

    def forward():
        device_.allocated += 40 + 24  # the output and what the backward needs
        return y

    def backward(output):
        assert output is y
        device_.peak = 500

    device_.allocated = 100
    assert timing.memory(forward, backward) == (24, 400)
    assert device_.log == ["synchronize", "reset"]


@pytest.mark.parametrize(
    ("size", "expected"), [(2**10, timing.MOST_SETS), (2**26, 4), (2**28, 1), (2**32, 1)]
)
def test_small_tensors_take_turns(size, expected):
    assert timing.sets(size) == expected


def test_copy_bandwidth_counts_both_directions(device_):
    samples = timing.copy_bandwidth(2**20)
    calls = timing.sets(2**21)
    assert samples == [pytest.approx(2 * 2**20 / (6.0e3 / calls) / 1e3)] * timing.REPLAYS
