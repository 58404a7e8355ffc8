"""Time and memory of calls on a GPU: all code of the benchmark that cannot run without one."""

import contextlib
import functools
import time

import torch

DEVICE = "cuda"
REPLAYS = 25  # samples of device time
LOOPS = 10  # samples of end-to-end time
TIMED_BYTES = 2**28  # moved by a replay or loop, so that it takes far longer than a clock's tick
MOST_SETS = 32


def sets(least_bytes):
    """The number of sets of tensors that take turns; a replay touches each once."""
    return min(MOST_SETS, max(1, -(-TIMED_BYTES // least_bytes)))


@functools.cache
def _stream():
    return torch.cuda.Stream()


@contextlib.contextmanager
def side_stream():
    """The stream that all calls are made on, because the default one cannot capture a graph.

    It is always the same one, because memory that was freed on a stream is reused on that stream alone.
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
    """Fills the L2 cache with other data, four times its size. It reads, because writes would end later."""
    _other_data().sum()


def device_time(calls, stream):
    """Samples of the device time of a call with a cold L2 cache, in microseconds.

    The calls, each on tensors of its own, are captured into a CUDA graph, so the host takes no part. Their
    results are kept, so that every call also writes to memory of its own.
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
    """Samples of the time of a call in a loop, launches included, in microseconds by the host's clock."""
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
    """Returns (bytes kept for the backward beside the output, peak bytes of forward and backward)."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = forward()
    kept = torch.cuda.memory_allocated() - before - y.untyped_storage().nbytes()
    if backward is not None:
        backward(y)
    return kept, torch.cuda.max_memory_allocated() - before


def copy_bandwidth(size):
    """Samples of the bandwidth of torch's copy of `size` bytes in GB/s, reads and writes added."""
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
