"""Faults planted in small kernels, which the emulator raises; without them the same kernels run."""

import numpy as np
import pytest
import triton.language as tl
from small_kernels import aligned, compiled, machine, raises, whole, written
from warp_kernels import GLOBAL, parts, places

from bench.lab.ptx import Program, Unsupported

WIDE = [suffix for suffix in GLOBAL if suffix != "b8"]


# Triton's kernels get as constants where they are wrong by how much; 0 is right.
def copy_kernel(x_ptr, y_ptr, n, N: tl.constexpr, BEFORE: tl.constexpr, BEYOND: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    x = tl.load(x_ptr + i - BEFORE, mask=i < n + BEYOND, other=0.0)
    tl.store(y_ptr + i, x, mask=i < n)


def copied(x, y, n, before=0, beyond=0):
    ptx = compiled(copy_kernel, x, y, n, N=256, BEFORE=before, BEYOND=beyond)
    machine(ptx, x, y, n, grid=(-(-n // 256), 1, 1))


def test_masked_off_stray_accesses_pass():
    x, y = whole(300), whole(300)
    y[:] = 0
    copied(x, y, 300)
    assert (x == y).all()


@pytest.mark.parametrize("wrong", [dict(before=1), dict(beyond=1)], ids=str)
def test_stray_load(wrong):
    with raises("outside"):
        copied(whole(300), whole(300), 300, **wrong)


def test_stray_store():
    with raises("outside"):
        copied(whole(300), whole(299), 300)


def test_access_between_tensors():
    both = whole(608)
    x, y = both[:300], both[304:604]  # four numbers between them
    copied(x, y, 300)
    assert (x == y).all()
    with raises("outside"):
        copied(x, y, 300, beyond=1)


def test_access_that_begins_in_a_tensor_and_ends_beyond():
    words = written(places(8) + "setp.lt.u32 %p1, %r1, 2;\n@%p1 ld.global.b64 %rd50, [%rd3];", "pp")
    machine(words, whole(4), whole(1))
    with raises("outside"):
        machine(words, whole(3), whole(1))


@pytest.mark.parametrize("suffix", WIDE)
@pytest.mark.parametrize("planted", ["load", "store"])
def test_misaligned_global_access(suffix, planted):
    count, size, registers = parts(suffix)
    inside, width = ", ".join(registers), count * size

    def run(load, store):
        text = (
            places(width)
            + f"""ld.global.{suffix} {{{inside}}}, [%rd3+{load}];
            st.global.{suffix} [%rd4+{store}], {{{inside}}};
        """
        )
        machine(written(text, "pp"), whole(33 * width, np.uint8), whole(33 * width, np.uint8))

    run(width, width)
    step = size if count > 1 else size // 2
    with raises(f"misaligned {planted}"):
        run(*((step, 0) if planted == "load" else (0, step)))


def shift_kernel(x_ptr, y_ptr, shift_ptr, N: tl.constexpr):
    i = tl.multiple_of(tl.load(shift_ptr), 16) + tl.arange(0, N)
    tl.store(y_ptr + tl.arange(0, N), tl.load(x_ptr + i))


def shifted(x, y, shift):
    shift = aligned(np.array([shift], np.int32))
    machine(compiled(shift_kernel, x, y, shift, N=256), x, y, shift)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_tensor_that_is_not_aligned_as_compiled(kind):
    x, y = whole(257, kind), whole(256, kind)
    shifted(x, y, 0)
    with raises("misaligned load"):
        shifted(x[1:], y, 0)


def test_offset_that_is_no_multiple_as_promised():
    x, y = whole(512), whole(256)
    shifted(x, y, 16)
    assert (y == x[16:272]).all()
    with raises("misaligned load"):
        shifted(x, y, 1)


# Programs
def overlap_kernel(x_ptr, y_ptr, N: tl.constexpr, OVERLAP: tl.constexpr):
    i = tl.program_id(0) * (N - OVERLAP) + tl.arange(0, N)
    tl.store(y_ptr + i, tl.load(x_ptr + i) + tl.program_id(0))


def neighbour_kernel(x_ptr, y_ptr, N: tl.constexpr, NEXT: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(x_ptr + i, tl.load(x_ptr + N * NEXT + i) + 1.0)


@pytest.mark.parametrize("programs", [2, 200])  # executed at the same time, and one after the other
@pytest.mark.parametrize("kernel", [overlap_kernel, neighbour_kernel])
def test_programs_that_touch_the_same_bytes(kernel, programs):
    x, y = whole(64 * (programs + 1)), whole(64 * (programs + 1))
    wrong = "OVERLAP" if kernel is overlap_kernel else "NEXT"
    for planted in (0, 1):
        ptx = compiled(kernel, x, y, num_warps=1, N=64, **{wrong: planted})
        if not planted:
            machine(ptx, x, y, grid=(programs, 1, 1))
        else:
            with raises("same byte"):
                machine(ptx, x, y, grid=(programs, 1, 1))


@pytest.mark.parametrize("programs", [2, 400])
def test_first_and_last_program_that_write_the_same_byte(programs):
    """Two programs write by one instruction, at the same time; the ends of 400 one long after the other."""
    text = """mov.u32 %r1, %ctaid.x;
        ld.param.b32 %r2, [small_param_1];
        rem.s32 %r3, %r1, %r2;
        ld.param.b64 %rd1, [small_param_0];
        mad.wide.u32 %rd2, %r3, 4, %rd1;
        mov.u32 %r4, %tid.x;
        setp.eq.b32 %p1, %r4, 0;
        @%p1 st.global.b32 [%rd2], %r1;
    """
    y = whole(programs)
    machine(written(text, "pi"), y, programs, grid=(programs, 1, 1))
    with raises("same byte"):
        machine(written(text, "pi"), y, programs - 1, grid=(programs, 1, 1))


@pytest.mark.parametrize(
    "line",
    [
        "atom.global.add.u32 %r5, [%rd1], 1;",
        "bar.sync 1;",
        "bar.sync 0, 32;",
        "shfl.sync.bfly.b32 %r5, %r1, 1, 31, 255;",
        "@%p1 ret;",
        "red.shared.add.u32 [%r2], 1;",
        "add.f128 %r5, %r1, %r1;",
    ],
)
def test_unsupported_instructions(line):
    with pytest.raises(Unsupported):
        Program(written(line))
