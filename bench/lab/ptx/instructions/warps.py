"""Exchanges of values between the lanes of a warp."""

from collections.abc import Callable

import numpy as np

from ..batch import Batch
from ..errors import Unsupported
from ..lanes import WARP
from ..operands import Operands, literal
from ..parsing import Instruction
from ..values import Array, reader, writer
from .table import Step, instruction

ALL = 0xFFFFFFFF
# (lane, distance or number, segment, clamp) -> (the lane to take from, whether there is one)
SHUFFLES: dict[str, Callable[[Array, Array, Array, Array], tuple[Array, Array]]] = {
    "bfly": lambda lane, s, segment, most: (lane ^ s, (lane ^ s) <= most),
    "idx": lambda lane, s, segment, most: (
        (lane & segment) | (s & ~segment),
        ((lane & segment) | (s & ~segment)) <= most,
    ),
    "down": lambda lane, s, segment, most: (lane + s, lane + s <= most),
    "up": lambda lane, s, segment, most: (lane - s, lane - s >= most),
}
REDUCE = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
REDUCE |= dict(add=np.add, min=np.minimum, max=np.maximum)


@instruction("shfl", modifiers="sync " + " ".join(SHUFFLES))
def shuffle(i: Instruction, operands: Operands) -> Step:
    if "|" in i.operands[0] or literal(i.operands[4], 4) & ALL != ALL:
        raise Unsupported("shuffle; executed are those of all lanes, without a predicate as result")
    if i.parts[2] not in SHUFFLES:
        raise Unsupported(f"shuffle; executed are {', '.join(SHUFFLES)}")
    mode = i.parts[2]
    target, guard, negated = operands.register(i.operands[0]), operands.guard(i), np.bool_(i.negated)
    a, b, c = operands.sources(i.operands[1:4], 4)

    def step(batch: Batch) -> None:
        mask = batch.mask(guard, negated)
        batch.whole_warps(mask, "shfl.sync")
        distance, clamp = batch.registers[b], batch.registers[c]
        if distance.size == clamp.size == 1:
            how = (mode, int(distance[0]), int(clamp[0]))
            if how not in batch.shuffles:
                batch.shuffles[how] = sources(batch, mode, distance, clamp)
            taken = batch.shuffles[how]
        else:
            taken = sources(batch, mode, distance, clamp)
        batch.write(target, batch.full(batch.registers[a]).take(taken), mask)

    return step


def sources(batch: Batch, mode: str, distance: Array, clamp: Array) -> Array:
    """The lane that each lane takes its value from, itself where there is none."""
    lane, distance, clamp = batch.lane, distance.astype(np.int64) & 31, clamp.astype(np.int64)
    segment = (clamp >> 8) & 31
    source, exists = SHUFFLES[mode](lane, distance, segment, (lane & segment) | (clamp & 31 & ~segment))
    return np.where(exists, batch.all_lanes - lane + source, batch.all_lanes)


@instruction("redux", modifiers="sync " + " ".join(REDUCE))
def reduce(i: Instruction, operands: Operands) -> Step:
    """Makes a step of a sum, an extreme or logic over all lanes of a warp."""
    how = i.parts[2]
    if how not in REDUCE:
        raise Unsupported(f"reduction; executed are {', '.join(REDUCE)}")
    target, guard, negated = operands.register(i.operands[0]), operands.guard(i), np.bool_(i.negated)
    source, members = operands.sources(i.operands[1:3], 4)
    numbers, bits = reader(i.type), writer(i.type, 4)

    def step(batch: Batch) -> None:
        mask = batch.mask(guard, negated)
        batch.whole_warps(mask, "redux.sync")
        if (batch.registers[members] != np.uint32(ALL)).any():
            raise Unsupported(f"redux.sync of some lanes; executed is that of all: {i}")
        x = numbers(np.ascontiguousarray(batch.full(batch.registers[source]))).reshape(-1, WARP)
        result = REDUCE[how].reduce(x, axis=1, dtype=x.dtype)
        batch.write(target, bits(np.repeat(result, WARP)), mask)

    return step


@instruction("vote", modifiers="sync ballot")
def vote(i: Instruction, operands: Operands) -> Step:
    """Makes a step that collects the predicates of a warp's lanes as bits."""
    if i.parts[2] != "ballot":
        raise Unsupported("vote; executed is vote.sync.ballot")
    target, guard, negated = operands.register(i.operands[0]), operands.guard(i), np.bool_(i.negated)
    inverted = np.bool_(i.operands[1][0] == "!")
    source = operands.operand(i.operands[1].lstrip("!"), 0)
    place = np.arange(WARP, dtype=np.uint64)
    if literal(i.operands[2], 4) & ALL != ALL:
        raise Unsupported("vote; executed are those of all lanes")

    def step(batch: Batch) -> None:
        mask = batch.mask(guard, negated)
        batch.whole_warps(mask, "vote.sync")
        votes = batch.full(batch.registers[source]) ^ inverted
        ballots = (votes.reshape(-1, WARP).astype(np.uint64) << place).sum(1).astype(np.uint32)
        batch.write(target, np.repeat(ballots, WARP), mask)

    return step
