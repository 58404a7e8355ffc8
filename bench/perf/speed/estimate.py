"""The time that a run will take, from the bytes of its cases and the compilations of its peers."""

from bench.operations import OPERATIONS
from bench.perf.speed import timing

# Seconds to the end of a case's first forward and backward; assumed, because no compiler tells beforehand.
FIRST_CALL_S = {"normreg": 1.5, "torch eager": 0.1, "torch.compile": 8.0}
ANOTHER_FIRST_CALL_S = 1.5
HOST_S = 100e-6  # a call
FLUSHED_BYTES = 2e8  # before each replay: four times an H100's L2 cache
OF_FLOAT64 = 4  # size of float64 over that of a 16-bit dtype
GATE_PASSES = 40  # over float64 tensors of the input's size


def seconds(case, peers, directions, gb_per_s):
    """Seconds for the peers on a case, at the bandwidth of a copy."""
    operation = OPERATIONS[case.operation]
    calls = timing.sets(operation.least_bytes(case, "forward"))
    replays, loops = timing.REPLAYS + 2, timing.LOOPS + 3
    moved = sum(operation.least_bytes(case, direction) for direction in directions) * calls
    flushed = replays * len(directions) * FLUSHED_BYTES
    device = ((replays + loops) * moved + flushed + GATE_PASSES * OF_FLOAT64 * case.bytes) / gb_per_s / 1e9
    host = loops * calls * len(directions) * HOST_S
    compiling = sum(FIRST_CALL_S.get(peer.name, ANOTHER_FIRST_CALL_S) for peer in peers)
    return compiling + len(peers) * (device + host)
