"""Memory, warps and control flow in the emulator: kernels of a few lines against numpy."""

import numpy as np
import pytest
from small_kernels import aligned, machine, written
from warp_kernels import (
    COPIES,
    GLOBAL,
    LOOP,
    MATRICES,
    PLACE,
    REDUCTIONS,
    SHARED,
    SHUFFLES,
    TABLE,
    copies_in_flight,
    copy_of_global,
    exchange,
    matrices_loaded,
    matrices_stored,
    parts,
    reversal_in_shared,
)


def random_bytes(count, kind=np.uint8):
    return aligned(np.random.default_rng(0).integers(0, 256, count, np.uint8).view(kind))


@pytest.mark.parametrize("suffix", GLOBAL)
def test_global_accesses(suffix):
    count, size, _ = parts(suffix)
    x = random_bytes(64 * count * size).reshape(64, -1)
    y = aligned(np.zeros((65, count * size), np.uint8))
    machine(written(copy_of_global(suffix), "pp", 64), x, y)
    expected = np.concatenate([np.zeros_like(x[:1]), x])
    expected[4] = 0
    assert (y == expected).all()


@pytest.mark.parametrize("suffix", SHARED)
def test_shared_accesses(suffix):
    count, size, _ = parts(suffix)
    x = random_bytes(64 * count * size).reshape(64, -1)
    y = aligned(np.zeros_like(x))
    machine(written(reversal_in_shared(suffix), "pp", 64), x, y, shared=x.nbytes)
    assert (y == x[::-1]).all()


def fragments(rows, count, trans):
    """What the threads hold of 8 x 8 matrices: two neighbours of a row each, or of a column."""
    matrices = rows.view(np.uint16).reshape(-1, 8, 8)[:count]
    matrices = matrices.swapaxes(1, 2) if trans else matrices
    return np.ascontiguousarray(matrices).view(np.uint32).reshape(count, 32).T


@pytest.mark.parametrize(("count", "trans"), MATRICES)
def test_matrices(count, trans):
    rows = random_bytes(512).reshape(32, 16)
    order = np.random.default_rng(1).permutation(8 * count).astype(np.uint32)
    named = aligned(16 * np.concatenate([order, np.full(32 - len(order), 1 << 20, np.uint32)]))
    held = aligned(np.zeros((32, count), np.uint32))
    machine(written(matrices_loaded(count, trans), "ppp"), rows, named, held, shared=512)
    assert (held == fragments(rows[order], count, trans)).all()

    back = aligned(np.zeros((8 * count, 16), np.uint8))
    machine(written(matrices_stored(count, trans), "ppp"), held, named, back, shared=128 * count)
    assert (back == rows[: 8 * count]).all()


def exchanged(instruction, x):
    y = aligned(np.zeros_like(x))
    machine(written(exchange(instruction), "pp", 64), x, y)
    return y


def source_lane(mode, lane, by, clamp):
    """The lane that a shuffle reads, by the manual of PTX."""
    segment = clamp >> 8 & 31
    most = lane & segment | clamp & 31 & ~segment
    lanes = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": lane & segment | by & ~segment}
    source = lanes[mode]
    return source if (source >= most if mode == "up" else source <= most) else lane


@pytest.mark.parametrize(("mode", "by", "clamp"), SHUFFLES)
def test_shuffles(mode, by, clamp):
    x = random_bytes(256, np.uint32)
    sources = [32 * (i // 32) + source_lane(mode, i % 32, by, clamp) for i in range(64)]
    shuffle = f"shfl.sync.{mode}.b32 %r51, %r50, {{}}, {clamp}, -1;"
    for text in (shuffle.format(by), f"mov.b32 %r53, {by};\n" + shuffle.format("%r53")):
        assert (exchanged(text, x) == x[sources]).all()


def test_shuffle_from_lanes_that_differ():
    x = random_bytes(256, np.uint32)
    y = exchanged("xor.b32 %r53, %r1, 5;\nshfl.sync.idx.b32 %r51, %r50, %r53, 31, -1;", x)
    assert (y == x[np.arange(64) ^ 5]).all()


@pytest.mark.parametrize("how", REDUCTIONS)
def test_reductions_of_a_warp(how):
    x = random_bytes(256, np.uint32)
    typed = x.view(np.int32) if how.endswith("s32") else x
    expected = REDUCTIONS[how].reduce(typed.reshape(2, 32), axis=1, dtype=typed.dtype)
    assert (
        exchanged(f"redux.sync.{how} %r51, %r50, %r52;", x).view(typed.dtype) == expected.repeat(32)
    ).all()


def test_ballot():
    x = random_bytes(256, np.int32)
    expected = [sum(int(v > 0) << i for i, v in enumerate(warp)) for warp in x.reshape(2, 32)]
    assert (
        exchanged("vote.sync.ballot.b32 %r51, %p1, -1;", x.view(np.uint32)) == np.repeat(expected, 32)
    ).all()
    inverse = exchanged("vote.sync.ballot.b32 %r51, !%p1, -1;", x.view(np.uint32))
    assert (inverse == ~np.repeat(expected, 32).astype(np.uint32)).all()


@pytest.mark.parametrize(("how", "size"), COPIES)
def test_copies_in_flight(how, size):
    x = random_bytes(64 * size, np.uint32).reshape(32, 2, -1)
    y = aligned(np.zeros((32, size // 2), np.uint32))
    machine(written(copies_in_flight(how, size), "pp"), x, y, shared=64 * size)
    first = np.where(np.arange(32) % 2, x[:, 0, 0], 0)
    assert (y[:, :2] == np.stack([first, x[:, 1, 0]], 1)).all()


def test_loop_of_threads_that_leave_at_different_times():
    x = aligned(np.random.default_rng(0).integers(1, 200, 64).astype(np.uint32))
    y = aligned(np.zeros_like(x))
    machine(written(LOOP, "pp", 64), x, y)

    def steps(n):
        return 0 if n == 1 else 1 + steps(3 * n + 1 if n % 2 else n // 2)

    expected = [sum(map(steps, warp)) for warp in x.reshape(2, 32).tolist()]
    assert (y == np.repeat(expected, 32)).all()


def test_branch_by_table():
    x = aligned(np.zeros(64, np.uint32))
    y = aligned(np.zeros_like(x))
    machine(written(TABLE, "pp", 64), x, y)
    assert (y == np.tile([10, 20, 7, 20], 16)).all()


def test_places_of_threads():
    y = aligned(np.zeros((2, 3, 5, 64, 8), np.int32))
    machine(written(PLACE, "pi", 64), y, -7, grid=(5, 3, 2))
    z, row, column, thread = np.indices((2, 3, 5, 64))
    assert (y[..., :4] == np.stack([thread, column, row, z], -1)).all()
    assert (y[..., 4] == -7).all()
    assert (y.view(np.int64)[..., 3] == -7).all()
