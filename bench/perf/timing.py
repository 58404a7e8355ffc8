"""Time and memory of calls on a GPU. All that needs one is here."""

import contextlib
import functools
import statistics
import time

import torch

DEVICE = "cuda"
REPLAYS = 25  # samples of device time
LOOPS = 10  # samples of end-to-end time
TIMED_BYTES = 2**28  # a replay or loop moves about as much, for its time to be far above a clock's tick
MOST_SETS = 32


def sets(least_bytes):
    """How many sets of tensors take turns: each is touched once a replay."""
    return min(MOST_SETS, max(1, -(-TIMED_BYTES // least_bytes)))


@functools.cache
def _stream():
    return torch.cuda.Stream()


@contextlib.contextmanager
def side_stream():
    """A stream to make all calls on, because a graph cannot be captured on the default one.

    It is always the same, because memory that was freed on a stream serves that stream alone.
    """
    stream = _stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        yield stream
    torch.cuda.synchronize()


def wait():
    torch.cuda.synchronize()


@functools.cache
def _other_data():
    return torch.zeros(torch.cuda.get_device_properties(0).L2_cache_size, dtype=torch.float32, device=DEVICE)


def flush():
    """Fills the L2 cache with other data, four times its size: read, because a write would end later."""
    _other_data().sum()


def device_time(calls, stream):
    """Microseconds a call on the device, with a cold L2 cache: samples.

    The calls, each on tensors of its own, are captured into a CUDA graph: no time of the host is in it. What
    they return is kept, so that every call also writes to memory of its own.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        kept = [call() for call in calls]
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    samples = []
    for _ in range(REPLAYS + 2):
        flush()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) * 1e3 / len(calls))
    del kept
    return samples[2:]


def end_to_end_time(calls):
    """Microseconds a call by the host's clock, launches included, in a loop as a training has it: samples."""
    samples = []
    for _ in range(LOOPS + 1):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for call in calls:
            call()
        torch.cuda.synchronize()
        samples.append((time.perf_counter() - begin) * 1e6 / len(calls))
    return samples[1:]


def memory(forward, backward):
    """(bytes kept between forward and backward beside the output, bytes at the peak of both)."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = forward()
    kept = torch.cuda.memory_allocated() - before - y.untyped_storage().nbytes()
    if backward is not None:
        backward(y)
    return kept, torch.cuda.max_memory_allocated() - before


def copy_bandwidth(size):
    """GB/s of torch's copy of `size` bytes, read and written, timed as everything else: samples."""
    count = sets(2 * size)
    pairs = [
        tuple(torch.zeros(size // 4, dtype=torch.float32, device=DEVICE) for _ in range(2))
        for _ in range(count)
    ]
    calls = [lambda a=a, b=b: b.copy_(a) for a, b in pairs]
    with side_stream() as stream:
        warm_up(calls)
        return [2 * size / microseconds / 1e3 for microseconds in device_time(calls, stream)]


def warm_up(calls):
    for call in 2 * calls[:2]:
        call()
    torch.cuda.synchronize()


def sample(calls, stream):
    warm_up(calls)
    return dict(device_us=device_time(calls, stream), end_to_end_us=end_to_end_time(calls))


def median(samples):
    return statistics.median(samples)
