"""Small kernels, written in PTX as LLVM writes it or compiled from Triton, and emulated launches of them.

Registers have the names that Triton's have: %p predicates, %rs 16 bits, %r 32, %rd 64.
"""

import re
import struct

import numpy as np
import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from bench.lab.ptx import GpuFault, Machine, Memory, Program

POINTERS = {"f2": "*fp16", "f4": "*fp32", "f8": "*fp64", "i4": "*i32", "i8": "*i64", "u1": "*u8"}


def written(body, parameters="", threads=32):
    """A kernel of these instructions. parameters: a letter each, p for a pointer and i for 32 bits."""
    kinds = {"p": ".u64 .ptr .global .align 1", "i": ".u32"}
    declared = ",\n".join(f"    .param {kinds[kind]} small_param_{i}" for i, kind in enumerate(parameters))
    lines = "\n".join("    " + line.strip() for line in body.strip().splitlines())
    return f"""
.version 8.7
.target sm_90a
.address_size 64

.extern .shared .align 16 .b8 global_smem[];
.visible .entry small(
{declared}
)
.reqntid {threads}
{{
    .reg .pred %p<99>;
    .reg .b16 %rs<99>;
    .reg .b32 %r<99>;
    .reg .b64 %rd<99>;
{lines}
    ret;
}}
"""


def compiled(kernel, *arguments, num_warps=4, aligned=True, **constants):
    """PTX of a Triton function for sm_90."""
    function = JITFunction(kernel)
    kinds = [POINTERS[a.dtype.str[1:]] if isinstance(a, np.ndarray) else "i32" for a in arguments]
    names = [p.name for p in function.params]
    signature = dict(zip(names, kinds)) | dict.fromkeys(constants, "constexpr")
    values = {(names.index(name),): value for name, value in constants.items()}
    of_16 = [(i,) for i, a in enumerate(arguments) if aligned and isinstance(a, np.ndarray)]
    source = ASTSource(function, signature, values, {i: [["tt.divisibility", 16]] for i in of_16})
    options = {"num_warps": num_warps, "enable_fp_fusion": True}
    return ptx_of(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options))


def ptx_of(compiled):
    ptx = compiled.asm["ptx"]  # bytes, where Triton compiles no further
    return ptx.decode() if isinstance(ptx, bytes) else ptx


def aligned(array, to=128):
    """A copy of an array that starts at a multiple of so many bytes."""
    room = np.empty(array.nbytes + to, np.uint8)
    skip = -room.ctypes.data % to
    copy = room[skip : skip + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def machine(ptx, *arguments, grid=(1, 1, 1), shared=0, within=None, fuse=True, **options):
    """Makes an emulated launch with arrays and integers; it may touch the arrays, or the ranges `within`."""
    raw, ranges = [], []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            first = argument.ctypes.data
            ranges.append((first, first + argument.nbytes))
            raw.append(struct.pack("<Q", first))
        else:
            raw.append(struct.pack("<i", argument))
    program = Program(ptx, fuse=fuse)
    raw += [struct.pack("<Q", 0)] * 2  # Triton's scratch
    memory = Memory(ranges if within is None else within)
    made = Machine(program, grid, raw, memory, shared, **options)
    made.run()
    return made


def opcodes(ptx):
    """Names of the instructions of a kernel, or of lines of PTX."""
    code = re.sub(r"//.*", "", ptx)
    start = r"(?:^|[;:{])\s*(?:@!?%p\d+\s+)?"  # of a statement, and its guard
    return set(re.findall(start + r"([a-z]\w*(?:\.[\w.:]+)?)(?=[\s;])", code, re.MULTILINE))


def raises(what):
    return pytest.raises(GpuFault, match=what)


def whole(count, kind=np.float32):
    return aligned(np.arange(count).astype(kind))
