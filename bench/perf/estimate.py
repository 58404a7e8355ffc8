"""How long a run will take, from the bytes of its cases and the compilations of its peers."""

from bench.operations import OPERATIONS
from bench.perf import timing

# Assumed, because no compiler tells beforehand: seconds to the end of a case's first forward and backward.
FIRST_CALL_S = {"normreg": 1.5, "torch eager": 0.1, "torch.compile": 8.0}
ANOTHER_FIRST_CALL_S = 1.5
HOST_S = 100e-6  # of a call
FLUSHED_BYTES = 2e8  # before each replay: four times an H100's L2 cache
OF_FLOAT64 = 4  # its size over that of a 16-bit element
GATE_PASSES = 40  # over tensors of the input's size, in float64


def seconds(case, peers, directions, gb_per_s):
    """Of the peers on a case, at the bandwidth of a copy."""
    operation = OPERATIONS[case.operation]
    calls = timing.sets(operation.least_bytes(case, "forward"))
    replays, loops = timing.REPLAYS + 2, timing.LOOPS + 3
    moved = sum(operation.least_bytes(case, direction) for direction in directions) * calls
    flushed = replays * len(directions) * FLUSHED_BYTES
    device = ((replays + loops) * moved + flushed + GATE_PASSES * OF_FLOAT64 * case.bytes) / gb_per_s / 1e9
    host = loops * calls * len(directions) * HOST_S
    compiling = sum(FIRST_CALL_S.get(peer.name, ANOTHER_FIRST_CALL_S) for peer in peers)
    return compiling + len(peers) * (device + host)
