"""Kernels of a few lines of PTX on memory, warps and control flow, for the emulator's tests."""

import itertools

import numpy as np

GLOBAL = ("b8", "b16", "b32", "b64", "v2.b32", "v2.b64", "v4.b32")
SHARED = ("b8", "b16", "b32", "b64", "v2.b8", "v2.b16", "v2.b32", "v2.b64", "v4.b8", "v4.b16", "v4.b32")
MATRICES = tuple(itertools.product((1, 2, 4), ("", ".trans")))
# mode, offset or lane, segments and clamp
SHUFFLES = (
    ("bfly", 16, 0x1F),
    ("bfly", 1, 0x1C1F),
    ("bfly", 8, 0x07),
    ("idx", 5, 0x1F),
    ("idx", 9, 0x181F),
    ("down", 1, 0x1F),
    ("down", 4, 0x181F),
    ("up", 3, 0x00),
    ("up", 1, 0x1800),
)
REDUCTIONS = {
    "add.s32": np.add,
    "min.s32": np.minimum,
    "max.u32": np.maximum,
    "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or,
    "xor.b32": np.bitwise_xor,
}
COPIES = (("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16))


def parts(suffix):
    """Number of elements, bytes of each, and registers for them."""
    *vector, bits = suffix.split(".")
    count = int(vector[0][1:]) if vector else 1
    name = {"b8": "%rs", "b16": "%rs", "b32": "%r", "b64": "%rd"}[bits]
    registers = [f"{name}{50 + i}" for i in range(count)]
    return count, int(bits[1:]) // 8, registers


def places(width):
    """Thread t's place in each of two tensors, %rd3 and %rd4, `width` bytes a thread."""
    return f"""mov.u32 %r1, %tid.x;
        ld.param.b64 %rd1, [small_param_0];
        ld.param.b64 %rd2, [small_param_1];
        mad.wide.u32 %rd3, %r1, {width}, %rd1;
        mad.wide.u32 %rd4, %r1, {width}, %rd2;
    """


def copy_of_global(suffix):
    """All threads but the fourth copy theirs to the next thread's place."""
    count, size, registers = parts(suffix)
    inside, width = ", ".join(registers), count * size
    return (
        places(width)
        + f"""setp.ne.b32 %p1, %r1, 3;
        @%p1 ld.global.{suffix} {{ {inside} }}, [ %rd3 + 0 ];
        @%p1 st.global.{suffix} [ %rd4 + {width} ], {{ {inside} }};
    """
    )


def reversal_in_shared(suffix):
    count, size, registers = parts(suffix)
    inside, width = ", ".join(registers), count * size
    inside = f"{{{inside}}}" if count > 1 else inside
    loads, stores = (
        "".join(f"{line.format(register, i * size)}\n" for i, register in enumerate(registers))
        for line in (
            f"ld.global.b{8 * size} {{}}, [%rd3+{{}}];",
            f"st.global.b{8 * size} [%rd4+{{1}}], {{0}};",
        )
    )
    return (
        places(width)
        + loads
        + f"""mov.b32 %r2, global_smem;
        mad.lo.s32 %r3, %r1, {width}, %r2;
        xor.b32 %r4, %r1, 63;
        mad.lo.s32 %r5, %r4, {width}, %r2;
        st.shared.{suffix} [%r3], {inside};
        bar.sync 0;
        ld.shared.{suffix} {inside}, [%r5];
    """
        + stores
    )


def matrices_loaded(count, trans):
    """Rows of 16 bytes to shared memory, then matrices of rows that the second tensor names, to the third."""
    registers = [f"%r{60 + i}" for i in range(count)]
    stores = "".join(f"st.global.b32 [%rd6+{4 * i}], {r};\n" for i, r in enumerate(registers))
    return (
        places(16)
        + f"""ld.global.v4.b32 {{%r50, %r51, %r52, %r53}}, [%rd3];
        shl.b32 %r2, %r1, 4;
        st.shared.v4.b32 [%r2], {{%r50, %r51, %r52, %r53}};
        bar.warp.sync -1;
        mad.wide.u32 %rd5, %r1, 4, %rd2;
        ld.global.b32 %r3, [%rd5];
        ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{", ".join(registers)}}}, [%r3];
        ld.param.b64 %rd7, [small_param_2];
        mad.wide.u32 %rd6, %r1, {4 * count}, %rd7;
    """
        + stores
    )


def matrices_stored(count, trans):
    """The reverse: registers from the first tensor to rows that the second names, all rows to the third."""
    registers = [f"%r{60 + i}" for i in range(count)]
    loads = "".join(f"ld.global.b32 {r}, [%rd3+{4 * i}];\n" for i, r in enumerate(registers))
    return (
        places(4 * count)
        + loads
        + f"""mad.wide.u32 %rd5, %r1, 4, %rd2;
        ld.global.b32 %r3, [%rd5];
        stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r3], {{{", ".join(registers)}}};
        bar.warp.sync -1;
        shl.b32 %r2, %r1, 4;
        setp.lt.u32 %p1, %r1, {8 * count};
        ld.param.b64 %rd7, [small_param_2];
        mad.wide.u32 %rd6, %r1, 16, %rd7;
        @%p1 ld.shared.v4.b32 {{%r50, %r51, %r52, %r53}}, [%r2];
        @%p1 st.global.v4.b32 [%rd6], {{%r50, %r51, %r52, %r53}};
    """
    )


def exchange(instruction):
    """One word a thread in and out. The instruction returns %r51 of %r50."""
    return (
        places(4)
        + f"""ld.global.b32 %r50, [%rd3];
        mov.b32 %r52, -1;
        setp.gt.s32 %p1, %r50, 0;
        {instruction}
        st.global.b32 [%rd4], %r51;
    """
    )


def copies_in_flight(how, size):
    """Two groups of copies: the first is read with the second in flight. Every second thread copies zeros."""
    return (
        places(2 * size)
        + f"""and.b32 %r2, %r1, 1;
        mul.lo.s32 %r3, %r2, {size};
        mul.lo.s32 %r4, %r1, {2 * size};
        add.s32 %r5, %r4, {size};
        cp.async.{how}.shared.global [ %r4 + 0 ], [ %rd3 + 0 ], {size:#x}, %r3;
        cp.async.commit_group;
        cp.async.{how}.shared.global [ %r5 + 0 ], [ %rd3 + {size} ], {size:#x};
        cp.async.commit_group;
        cp.async.wait_group 1;
        ld.shared.b32 %r50, [%r4];
        cp.async.wait_group 0;
        ld.shared.b32 %r51, [%r5];
        st.global.b32 [%rd4], %r50;
        st.global.b32 [%rd4+4], %r51;
    """
    )


# Steps of Collatz's sequence of a thread's number, added over the warp once all threads have left the loop
LOOP = (
    places(4)
    + """ld.global.b32 %r50, [%rd3];
        mov.b32 %r51, 0;
        bra.uni $L__BB0_4;
    $L__BB0_1:
        and.b32 %r52, %r50, 1;
        setp.eq.b32 %p2, %r52, 0;
        @%p2 bra $L__BB0_2;
        mad.lo.s32 %r50, %r50, 3, 1;
        bra.uni $L__BB0_3;
    $L__BB0_2:
        shr.u32 %r50, %r50, 1;
    $L__BB0_3:
        add.s32 %r51, %r51, 1;
    $L__BB0_4:
        setp.eq.b32 %p1, %r50, 1;
        @!%p1 bra $L__BB0_1;
        mov.b32 %r54, -1;
        redux.sync.add.s32 %r55, %r51, %r54;
        st.global.b32 [%rd4], %r55;
    """
)
TABLE = (
    places(4)
    + """and.b32 %r2, %r1, 3;
        mov.b32 %r3, 7;
    $L_brx_0: .branchtargets
        $L__BB0_1,
        $L__BB0_2,
        $L__BB0_3,
        $L__BB0_2;
        brx.idx %r2, $L_brx_0;
    $L__BB0_1:
        mov.b32 %r3, 10;
        bra $L__BB0_3;
    $L__BB0_2:
        mov.b32 %r3, 20;
    $L__BB0_3:
        st.global.b32 [%rd4], %r3;
    """
)
# The thread's place in the grid, and what it is told of it
PLACE = """mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ctaid.y;
    mov.u32 %r5, %ctaid.z;
    mov.u32 %r6, %nctaid.x;
    mov.u32 %r7, %nctaid.y;
    mad.lo.s32 %r8, %r5, %r7, %r4;
    mad.lo.s32 %r9, %r8, %r6, %r3;
    mad.lo.s32 %r10, %r9, %r2, %r1;
    ld.param.b64 %rd1, [small_param_0];
    ld.param.b32 %r11, [small_param_1];
    ld.param.s32 %rd2, [small_param_1];
    mad.wide.u32 %rd3, %r10, 32, %rd1;
    st.global.v4.b32 [%rd3], {%r1, %r3, %r4, %r5};
    st.global.b32 [%rd3+16], %r11;
    st.global.b64 [%rd3+24], %rd2;
    """
KERNELS = (
    *map(copy_of_global, GLOBAL),
    *map(reversal_in_shared, SHARED),
    *itertools.starmap(matrices_loaded, MATRICES),
    *itertools.starmap(matrices_stored, MATRICES),
    *(exchange(f"shfl.sync.{mode}.b32 %r51, %r50, {by}, {clamp}, -1;") for mode, by, clamp in SHUFFLES),
    *(exchange(f"redux.sync.{how} %r51, %r50, %r52;") for how in REDUCTIONS),
    exchange("vote.sync.ballot.b32 %r51, %p1, -1;"),
    *itertools.starmap(copies_in_flight, COPIES),
    LOOP,
    TABLE,
    PLACE,
)
