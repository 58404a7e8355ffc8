"""Faults of races, barriers and warps, planted in small kernels that run without them."""

import contextlib

import numpy as np
import pytest
import triton.language as tl
from small_kernels import compiled, machine, raises, whole, written
from triton.runtime.jit import JITFunction
from warp_kernels import matrices_loaded, matrices_stored

from bench.lab.ptx import GpuFault, Unsupported

# Shared memory. All threads have their number in %r1 and their word's address in %r2.
OWN = "mov.u32 %r1, %tid.x;\nshl.b32 %r2, %r1, 2;\nshl.b32 %r3, %r1, 4;\n"
OTHER = OWN + "xor.b32 %r4, %r2, {};\n"  # and another thread's in %r4: 128 for one of the other warp


def in_shared(*lines, threads=64, shared=1024, **options):
    return machine(written(OWN + "\n".join(lines), "", threads), shared=shared, **options)


@pytest.mark.parametrize(
    ("line", "least"),
    [
        ("st.shared.b32 [%r2], %r1;", 256),
        ("ld.shared.b32 %r5, [%r2+4];", 260),
        ("ld.shared.v4.b32 {%r5, %r6, %r7, %r8}, [%r3];", 1024),
    ],
)
def test_shared_memory_out_of_bounds(line, least):
    in_shared(line, shared=-(-least // 16) * 16)
    with raises("shared memory out of bounds"):
        in_shared(line, shared=(least - 1) // 16 * 16)


def test_negative_shared_address():
    with raises("shared memory out of bounds"):
        in_shared("st.shared.b32 [%r2+-4], %r1;")


@pytest.mark.parametrize(
    ("line", "width"),
    [
        ("st.shared.b16 [%r2+{}], %rs1;", 2),
        ("ld.shared.b32 %r5, [%r2+{}];", 4),
        ("st.shared.v2.b16 [%r2+{}], {{%rs1, %rs2}};", 4),
        ("ld.shared.b64 %rd5, [%r3+{}];", 8),
        ("st.shared.v4.b32 [%r3+{}], {{%r5, %r6, %r7, %r8}};", 16),
    ],
)
def test_misaligned_shared_access(line, width):
    in_shared("mov.b16 %rs1, 1;\nmov.b16 %rs2, 2;", line.format(0), shared=2048)
    with raises("misaligned"):
        in_shared("mov.b16 %rs1, 1;\nmov.b16 %rs2, 2;", line.format(width // 2), shared=2048)


STORE, STORE_OTHER = "st.shared.b32 [%r2], %r1;", "st.shared.b32 [%r4], %r1;"
LOAD, LOAD_OTHER = "ld.shared.b32 %r5, [%r2];", "ld.shared.b32 %r5, [%r4];"
BAR = "bar.sync 0;"


@pytest.mark.parametrize(
    ("before", "after"),
    [((STORE,), (LOAD_OTHER,)), ((STORE, BAR, LOAD_OTHER), (STORE,)), ((STORE,), (STORE_OTHER,))],
    ids=["read after write", "write after read", "write after write"],
)
def test_race_between_warps(before, after):
    def run(other, *between):
        in_shared(f"xor.b32 %r4, %r2, {other};", *before, *between, *after)

    run(128, BAR)
    run(4, "bar.warp.sync -1;")
    with raises("race"):
        run(128)


def test_race_of_warps_in_one_instruction():
    """Two warps write to the same words: the same numbers, as Triton has them do, or different ones."""
    in_shared("and.b32 %r4, %r2, 127;", "and.b32 %r1, %r1, 31;", STORE_OTHER)
    with raises("race"):
        in_shared("and.b32 %r4, %r2, 127;", STORE_OTHER)


@pytest.mark.parametrize("planted", [0, 1])
def test_barrier_of_another_program(planted):
    """Program 0 passes a barrier where the planted one, at the same time, passes none."""
    text = f"""mov.u32 %r5, %ctaid.x;
        xor.b32 %r4, %r2, 128;
        setp.eq.b32 %p1, %r5, {{}};
        {STORE}
        @%p1 bra $L__BB0_1;
        {BAR}
    $L__BB0_1:
        {LOAD_OTHER}
    """
    machine(written(OWN + text.format(9), "", 64), shared=256, grid=(2, 1, 1))
    with raises("race"):
        machine(written(OWN + text.format(planted), "", 64), shared=256, grid=(2, 1, 1))


def test_lanes_of_a_warp_that_store_different_numbers_to_one_place():
    """The number that stays is undefined. Triton does so in shared memory that nothing reads."""

    def stored(number):
        text = f"""ld.param.b64 %rd1, [small_param_0];
            mov.b32 %r4, 16;
            st.shared.b32 [%r4], {number};
            st.global.b32 [%rd1], {{}};
        """
        return OWN + text

    made = machine(written(stored(7).format(7), "p"), whole(4), shared=32)
    assert not made.count["stores of different numbers to one place"]
    made = machine(written(stored("%r1").format(7), "p"), whole(4), shared=32)
    assert made.count["stores of different numbers to one place"] == 1
    with raises("race"):
        machine(written(stored(7).format("%r1"), "p"), whole(4), shared=32)


def test_a_warp_may_read_what_several_have_read():
    both_read = ("and.b32 %r4, %r2, 127;", STORE, BAR, LOAD_OTHER, LOAD_OTHER)
    in_shared(*both_read, BAR, STORE)
    with raises("race"):
        in_shared(*both_read, STORE)


def plus(a, b):
    return a + b


combine = JITFunction(plus)


def sums_kernel(x_ptr, y_ptr, N: tl.constexpr):
    total = 0.0
    for row in range(3):
        total += tl.reduce(tl.load(x_ptr + row * N + tl.arange(0, N)), 0, combine)
    tl.store(y_ptr, total)


def test_each_barrier_of_a_reduction_is_needed():
    x, y = whole(768), whole(1)
    ptx = compiled(sums_kernel, x, y, N=256)
    machine(ptx, x, y, shared=64)
    assert y[0] == x.sum()
    pieces = ptx.split("bar.sync \t0;")
    assert len(pieces) > 6  # two a row
    raised = 0
    for i in range(1, len(pieces)):
        without = "bar.sync \t0;".join([*pieces[: i - 1], pieces[i - 1] + pieces[i], *pieces[i + 1 :]])
        with contextlib.suppress(GpuFault):
            machine(without, x, y, shared=64)
            continue
        raised += 1
    assert raised >= len(pieces) - 2  # that before the first row's guards nothing


# Barriers
def in_halves(first, second, by=32):
    """Threads below `by` execute the one, the others the other."""
    return f"""setp.lt.u32 %p1, %r1, {by};
        @%p1 bra $L__BB0_1;
        {second}
        bra $L__BB0_2;
    $L__BB0_1:
        {first}
    $L__BB0_2:
    """


def test_barrier_that_threads_which_have_exited_do_not_reach():
    in_shared(BAR, in_halves("ret;", ""))
    with raises("barrier"):
        in_shared(in_halves("ret;", ""), BAR)


def test_barriers_that_warps_reach_unequally_often():
    in_shared(in_halves(BAR, BAR))
    with raises("barrier"):
        in_shared(in_halves(BAR, ""))


def test_barrier_in_a_part_of_a_warp():
    in_shared(in_halves(BAR, BAR, by=32))
    with raises("barrier"):
        in_shared(in_halves(BAR, BAR, by=16))


# Warps
WARP_WIDE = {
    "shuffle": "shfl.sync.bfly.b32 %r5, %r1, 1, 31, -1;",
    "reduction": "mov.b32 %r6, -1;\nredux.sync.add.s32 %r5, %r1, %r6;",
    "ballot": "vote.sync.ballot.b32 %r5, %p1, -1;",
    "matrix": "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r5}, [%r3];",
}


@pytest.mark.parametrize("what", WARP_WIDE)
def test_warp_wide_instruction_with_inactive_lanes(what):
    in_shared(in_halves(WARP_WIDE[what], "", by=32))
    with raises("inactive lanes"):
        in_shared(in_halves(WARP_WIDE[what], "", by=31))


@pytest.mark.parametrize("what", ["shuffle", "reduction"])
def test_warp_wide_instruction_behind_a_guard(what):
    *before, instruction = WARP_WIDE[what].splitlines()
    in_shared("setp.lt.u32 %p1, %r1, 32;", *before, f"@%p1 {instruction}")
    with raises("inactive lanes"):
        in_shared("setp.lt.u32 %p1, %r1, 33;", *before, f"@%p1 {instruction}")


@pytest.mark.parametrize("kernel", [matrices_loaded, matrices_stored])
def test_misaligned_row_of_a_matrix(kernel):
    held, rows, out = whole(128, np.uint32), 16 * whole(32, np.uint32), whole(128, np.uint32)
    machine(written(kernel(1, ""), "ppp"), held, rows, out, shared=512)
    rows[5] += 8
    with raises("misaligned row"):
        machine(written(kernel(1, ""), "ppp"), held, rows, out, shared=512)
    rows[5] = 512
    with raises("out of bounds"):
        machine(written(kernel(1, ""), "ppp"), held, rows, out, shared=512)


def scratch_kernel(x_ptr, y_ptr, N: tl.constexpr, BARRIER: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y_ptr + i, tl.load(x_ptr + i))
    if BARRIER:
        tl.debug_barrier()
    tl.store(x_ptr + i, tl.load(y_ptr + N - 1 - i))


def test_race_of_warps_in_global_memory():
    x, y = whole(256), whole(256)
    machine(compiled(scratch_kernel, x, y, N=256, BARRIER=True), x, y)
    assert (x == np.arange(256)[::-1]).all()
    with raises("race"):
        machine(compiled(scratch_kernel, x, y, N=256, BARRIER=False), x, y)


# Copies in flight
COPY = """ld.param.b64 %rd1, [small_param_0];
    mad.wide.u32 %rd2, %r1, 4, %rd1;
    cp.async.ca.shared.global [ %r2 + 0 ], [ %rd2 + 0 ], 0x4;
    cp.async.commit_group;"""
WAIT = "cp.async.wait_group 0;"


def copying(*lines):
    machine(written(OTHER.format(128) + "\n".join(lines), "p", 64), whole(64), shared=512)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ((COPY, WAIT, LOAD), (COPY, LOAD, WAIT)),
        ((COPY, WAIT, LOAD), (COPY, "cp.async.wait_group 1;", LOAD, WAIT)),
        ((COPY, WAIT, STORE), (COPY, STORE, WAIT)),
        ((COPY, WAIT, BAR, LOAD_OTHER), (COPY, WAIT, LOAD_OTHER)),
        ((COPY, WAIT, BAR, LOAD_OTHER), (COPY, BAR, WAIT, LOAD_OTHER)),
        ((COPY, WAIT, BAR, LOAD_OTHER), (COPY, BAR, LOAD_OTHER, WAIT)),
        ((STORE, BAR, LOAD_OTHER, BAR, COPY, WAIT), (STORE, BAR, LOAD_OTHER, COPY, BAR, WAIT)),
    ],
    ids=[
        "read before the wait",
        "read of the last group",
        "written before the wait",
        "no barrier",
        "barrier before the wait",
        "read by another before the wait",
        "copied over what others read",
    ],
)
def test_copy_in_flight(right, wrong):
    copying(*right)
    with pytest.raises(GpuFault):
        copying(*wrong)


def test_misaligned_copy():
    copying(COPY, WAIT)
    for place in ("%rd2 + 0", "%r2 + 0"):
        with raises("misaligned"):
            copying(COPY.replace(place, place.replace("0", "2")), WAIT)


@pytest.mark.parametrize("line", ["cp.async.commit_group;", WAIT])
def test_groups_of_copies_are_whole_programs(line):
    copying(COPY, in_halves(line, line, by=0), WAIT)
    with pytest.raises(Unsupported, match="diverge"):
        copying(COPY, in_halves(line, line, by=32), WAIT)


def test_copies_of_a_part_are_unsupported():
    part = COPY.replace("0x4;", "0x4, %r5;")
    copying("mov.b32 %r5, 4;", part, WAIT)
    with pytest.raises(Unsupported, match="part"):
        copying("mov.b32 %r5, 2;", part, WAIT)
