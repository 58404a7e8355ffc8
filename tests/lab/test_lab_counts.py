"""What the emulator counts of a launch, in kernels counted by hand."""

import numpy as np
import pytest
from small_kernels import aligned, machine, written
from warp_kernels import COPIES, copies_in_flight, places


def zeros(count):
    return aligned(np.zeros(count, np.uint8))


def moved(made, direction):
    return tuple(made.count[f"global {direction} {what}"] for what in ("requests", "bytes", "sectors"))


# bytes from thread to thread, first byte, what is loaded, sectors of each of two warps
ACCESSES = {
    "beside each other": (4, 0, "b32", 4),
    "beside each other, 16 bytes": (16, 0, "v4.b32", 16),
    "not at the beginning of a sector": (4, 16, "b32", 5),
    "two bytes": (2, 0, "b16", 2),
    "every second": (8, 0, "b32", 8),
    "each in a sector": (32, 0, "b32", 32),
    "further apart": (128, 4, "b32", 32),
    "all the same": (0, 0, "b64", 1),
}


@pytest.mark.parametrize(("stride", "first", "suffix", "sectors"), ACCESSES.values(), ids=list(ACCESSES))
def test_bytes_and_sectors_of_global_memory(stride, first, suffix, sectors):
    registers = {"b16": "%rs5", "b32": "%r5", "b64": "%rd5", "v4.b32": "{%r5, %r6, %r7, %r8}"}[suffix]
    width = {"b16": 2, "b32": 4, "b64": 8, "v4.b32": 16}[suffix]
    load = f"ld.global.{suffix} {registers}, [%rd3+{first}];"
    made = machine(written(places(stride) + load, "pp", 64), zeros(64 * 128 + 16), zeros(16))
    assert moved(made, "load") == (2, 64 * width, 2 * sectors if stride else 2)
    assert moved(made, "store") == (0, 0, 0)

    store = f"setp.lt.u32 %p1, %r1, 8;\n@%p1 st.global.{suffix} [%rd3+{first}], {registers};"
    made = machine(written(places(stride) + store, "pp", 64), zeros(64 * 128 + 16), zeros(16))
    touched = {(thread * stride + first + byte) // 32 for thread in range(8) for byte in range(width)}
    assert moved(made, "store") == (1, 8 * width, len(touched))
    assert moved(made, "load") == (0, 0, 0)


def test_nothing_is_counted_where_all_are_masked_off():
    store = "setp.lt.u32 %p1, %r1, 0;\n@%p1 st.global.b32 [%rd3], %r1;"
    made = machine(written(places(4) + store, "pp", 64), zeros(256), zeros(16))
    assert moved(made, "store") == (0, 0, 0)


# bytes from thread to thread, what is stored, wavefronts of a warp
CONFLICTS = {
    "beside each other": (4, "b32", 1),
    "two ways": (8, "b32", 2),
    "four ways": (16, "b32", 4),
    "all in a bank": (128, "b32", 32),
    "33 words apart": (132, "b32", 1),
    "bytes": (1, "b8", 1),
    "8 bytes": (8, "b64", 2),
    "16 bytes": (16, "v4.b32", 4),
    "16 bytes, padded": (144, "v4.b32", 4),
    "16 bytes, in four banks": (128, "v4.b32", 32),
}


@pytest.mark.parametrize(("stride", "suffix", "wavefronts"), CONFLICTS.values(), ids=list(CONFLICTS))
def test_wavefronts_of_shared_memory(stride, suffix, wavefronts):
    registers = {"b8": "%rs5", "b32": "%r5", "b64": "%rd5", "v4.b32": "{%r5, %r6, %r7, %r8}"}[suffix]
    body = f"""mov.u32 %r1, %tid.x;
        mul.lo.s32 %r2, %r1, {stride};
        st.shared.{suffix} [%r2], {registers};
    """
    made = machine(written(body, "", 64), shared=64 * stride + 16)
    assert made.count["shared requests"] == 2
    assert made.count["shared wavefronts"] == 2 * wavefronts


def test_words_that_all_read_take_one_wavefront():
    body = "mov.b32 %r1, 8;\nst.shared.b32 [%r1], 1;\nld.shared.b32 %r2, [%r1];"
    assert machine(written(body), shared=16).count["shared wavefronts"] == 2


def test_bytes_of_dram():
    """Bytes of large tensors and of small ones count once, in each direction."""
    twice = "ld.global.b32 %r5, [%rd3];\nld.global.b32 %r6, [%rd4];\n" * 2
    small, large = zeros(128), zeros(2 << 20)
    assert machine(written(places(4) + twice, "pp"), small, large).dram_bytes() == 128 + 128
    stored = "st.global.b32 [%rd3], %r1;\nld.global.b32 %r6, [%rd4];\n"
    assert machine(written(places(4) + stored, "pp"), large, zeros(4096)).dram_bytes() == 128 + 128
    both = "ld.global.b32 %r5, [%rd3];\nst.global.b32 [%rd3], %r5;\n"
    assert machine(written(places(4) + both, "pp"), small, large).dram_bytes() == 2 * 128


# kibibytes that are loaded, and how often they come from memory when they are loaded twice
AGAIN = """mov.u32 %r1, %tid.x;
        shl.b32 %r2, %r1, 4;
        ld.param.b64 %rd1, [small_param_0];
        mov.b32 %r3, 0;
    $L__BB0_1:
        setp.ge.s32 %p1, %r3, {twice};
        @%p1 bra $L__BB0_2;
        and.b32 %r4, %r3, {last};
        shl.b32 %r4, %r4, 9;
        add.s32 %r4, %r4, %r2;
        cvt.u64.u32 %rd2, %r4;
        add.s64 %rd3, %rd1, %rd2;
        ld.global.v4.b32 {{%r5, %r6, %r7, %r8}}, [%rd3];
        add.s32 %r3, %r3, 1;
        bra $L__BB0_1;
    $L__BB0_2:
    """


@pytest.mark.parametrize(("kib", "times"), [(64, 1), (128, 1), (256, 2), (1024, 2)])
def test_bytes_of_large_tensors_that_are_loaded_again(kib, times):
    """They are in the cache where little was loaded in between: at most 25 MiB by 132 multiprocessors."""
    body = AGAIN.format(twice=2 * kib * 2, last=kib * 2 - 1)
    assert machine(written(body, "p"), zeros(2 << 20)).dram_bytes() == times * kib * 1024


@pytest.mark.parametrize("loads", [1, 2])
@pytest.mark.parametrize(("stride", "distinct"), [(4, 64), (0, 1)], ids=["apart", "shared"])
@pytest.mark.parametrize(("programs", "waves"), [(3, 1), (132, 1), (135, 2)])
def test_programs_side_by_side_that_share_a_byte_move_it_once(stride, distinct, loads, programs, waves):
    """Two warps of each load from a large tensor; of 132 multiprocessors the first takes program 132, too."""
    body = places(stride) + "ld.global.b32 %r5, [%rd3];\n" * loads
    made = machine(written(body, "pp", 64), zeros(2 << 20), zeros(16), grid=(programs, 1, 1))
    assert made.count["global load bytes"] == programs * 64 * 4 * loads
    assert made.dram_bytes() == waves * distinct * 4


def test_bytes_of_a_small_tensor_that_nothing_touches():
    """Half of its first 128 bytes are loaded twice."""
    half = "setp.lt.u32 %p1, %r1, 16;\n" + "@%p1 ld.global.b32 %r5, [%rd3];\n" * 2
    assert machine(written(places(4) + half, "pp"), zeros(4096), zeros(16)).dram_bytes() == 64


LOOP = """mov.u32 %r1, %tid.x;
        shr.u32 %r2, %r1, 5;
        shl.b32 %r3, %r1, 2;
        ld.param.b64 %rd1, [small_param_0];
        mov.b32 %r4, 0;
        mov.b32 %r5, 0f3F800000;
    $L__BB0_1:
        setp.ge.s32 %p1, %r4, %r2;
        @%p1 bra $L__BB0_2;
        mul.f32 %r6, %r5, %r5;
        fma.rn.f32 %r5, %r6, %r5, %r6;
        add.f32 %r5, %r5, %r5;
        sub.f32 %r5, %r5, %r6;
        ex2.approx.f32 %r7, %r5;
        div.full.f32 %r7, %r7, %r5;
        cvt.f64.f32 %rd2, %r7;
        mul.f64 %rd2, %rd2, %rd2;
        add.s32 %r4, %r4, 1;
        bra $L__BB0_1;
    $L__BB0_2:
        st.shared.b32 [%r3], %r5;
        bar.sync 0;
        ld.shared.b32 %r8, [%r3];
        shfl.sync.bfly.b32 %r9, %r8, 1, 31, -1;
        add.s64 %rd3, %rd1, 4;
        st.global.b32 [%rd1], 0;
    """


def test_instructions_by_class():
    """Four warps, of which the first does not enter the loop and the last goes round three times."""
    made = machine(written(LOOP, "p", 128), zeros(16), shared=512)
    warps, rounds = 4, 0 + 1 + 2 + 3
    assert made.by_class == {
        "alu": warps * (6 + 1 + 1) + (rounds + warps) + rounds,  # before, add.s64, ret; setp; add.s32
        "branch": (rounds + warps) + rounds,
        "fma": 4 * rounds,
        "mufu": rounds,
        "div": rounds,
        "cvt": rounds,
        "fp64": rounds,
        "lsu": 3 * warps,
        "bar": warps,
        "shfl": warps,
    }


def test_a_product_and_its_sum_are_one_instruction_where_fused():
    body = "mov.b32 %r1, 0f3F800000;\nmul.f32 %r2, %r1, %r1;\nadd.f32 %r3, %r2, %r1;"
    assert machine(written(body)).by_class == {"alu": 2, "fma": 1}
    assert machine(written(body), fuse=False).by_class == {"alu": 2, "fma": 2}


def test_programs_add_up():
    body = places(4) + "ld.global.b32 %r5, [%rd3];\nshl.b32 %r6, %r1, 2;\nst.shared.b32 [%r6], %r5;"
    ptx = written(body, "pp")
    one, many = (machine(ptx, zeros(128), zeros(16), grid=(n, 1, 1), shared=128) for n in (1, 300))
    for name in ("global load bytes", "global load sectors", "shared wavefronts"):
        assert many.count[name] == 300 * one.count[name] > 0
    assert many.by_class == {name: 300 * times for name, times in one.by_class.items()}


def test_counting_and_races_can_be_left_out():
    body = places(4) + "st.global.b32 [%rd3], %r1;"  # which all programs store
    made = machine(written(body, "pp"), zeros(128), zeros(16), grid=(300, 1, 1), count=False, races=False)
    assert not made.count
    assert not made.by_class


@pytest.mark.parametrize(("how", "size"), COPIES)
def test_copies_in_flight_count_as_loads(how, size):
    """Half the threads copy only their second part."""
    made = machine(
        written(copies_in_flight(how, size), "pp"), zeros(64 * size), zeros(64 * size), shared=64 * size
    )
    assert made.count["global load bytes"] == (32 + 16) * size
    assert not made.count["cp.async not waited for"]


def test_copies_that_nothing_waits_for():
    body = copies_in_flight("ca", 4).split("cp.async.wait_group 1")[0]
    made = machine(written(body, "pp"), zeros(256), zeros(256), shared=256)
    assert made.count["cp.async not waited for"] == 2


def test_shared_memory_that_was_never_written():
    body = "mov.b32 %r1, 8;\nst.shared.b32 [%r1], %r1;\nld.shared.b32 %r2, [%r1{}];"
    assert not machine(written(body.format("")), shared=16).count["reads of shared memory never written"]
    assert machine(written(body.format("+4")), shared=16).count["reads of shared memory never written"] == 1


# Twice round a loop whose end stands before its beginning, as LLVM writes it: lanes part, and meet at the end
PARTED = """
mov.u32 %r1, %tid.x;
mov.u32 %r2, 0;
bra.uni $BEGINNING;
$END:
shl.b32 %r4, %r1, 1;
add.s32 %r2, %r2, 1;
setp.lt.u32 %p2, %r2, 2;
@%p2 bra $BEGINNING;
bra.uni $BEHIND;
$BEGINNING:
setp.lt.u32 %p1, %r1, 16;
@%p1 bra $LOW;
cvt.rn.f32.u32 %r3, %r1;
bra.uni $END;
$LOW:
cvt.rn.f32.u32 %r3, %r1;
bra.uni $END;
$BEHIND:
"""


def test_lanes_that_part_in_a_loop_meet_at_its_end():
    counts = machine(written(PARTED)).by_class
    assert counts["cvt"] == 2 * 2  # both sides, twice
    assert counts["alu"] == 2 + 2 * 4 + 1  # before, once each time, ret
