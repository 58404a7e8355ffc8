"""Registers, spills, access widths and barriers of every compiled kernel. Needs no GPU.

Every layer runs forward and backward as on a GPU, with the launches noted instead of made. Each noted launch
is compiled ahead of time for every target, with the specialisation a GPU run would get for tensors that
start at a multiple of 16 bytes. `instructions an element` are those of the whole kernel, each counted once,
of all threads of a program, over the elements of its largest load or store, or of all tiles of a row.
"""

import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import normreg
from bench.harness import tables
from bench.harness.budget import in_processes
from bench.lab.without_gpu import as_on_a_gpu, noted_launches
from bench.operations import OPERATIONS, cases
from bench.operations.case import DTYPES, SHORT
from normreg.kernels import tiling

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int64: "*i64",
    torch.int8: "*i8",
}
AMD_WIDTHS = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "short": 2, "ubyte": 1}


EXECUTABLE = 4  # a flag of ELF sections
NOP = 0x918  # the opcode that pads NVIDIA's machine code


@dataclass(frozen=True)
class MachineCode:
    registers: int  # per thread
    spill_bytes: int  # per thread
    access_bytes: list[int]  # per thread, of each access to global memory
    barriers: int
    instructions: int
    approximate_roots: int  # float32 square roots that are not correctly rounded
    copies_in_flight: int  # copies of a thread to shared memory that it does not yet wait for


def calls(case):
    """The launches that a layer would make: {direction: launches}."""
    with mock.patch.object(torch, "randn", torch.empty):  # values do not matter
        layer = OPERATIONS[case.operation].layer(normreg, case, dtype=case.dtype)
    x = case.like_input(torch.empty, "cpu").requires_grad_()
    with as_on_a_gpu():
        with noted_launches() as forward:
            y = layer(x)
        with noted_launches() as backward:
            torch.autograd.grad(y, (x, *layer.parameters()), case.like_output(torch.empty, "cpu"))
    return dict(forward=forward, backward=backward)


def launches(case):
    """The launches that a layer's forward and backward would make."""
    return [noted for direction in calls(case).values() for noted in direction]


def type_of(value, stated=None):
    """A value's type as Triton writes it; a NamedTuple's is one of the types of its fields."""
    if isinstance(value, tuple):
        return type(value)(*map(type_of, value))
    if value is None:
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return stated or ("i32" if -(2**31) <= value < 2**31 else "i64")


def leaves(value, place):
    """(place, value) of a value, or of each that a NamedTuple has."""
    if isinstance(value, tuple):
        for i, element in enumerate(value):
            yield from leaves(element, (*place, i))
    else:
        yield place, value


def compile_launch(noted, target):
    signature, constants, aligned = {}, {}, {}
    for i, parameter in enumerate(noted.kernel.params):
        value = noted.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[(i,)] = "constexpr", value
            continue
        signature[parameter.name] = type_of(value, parameter.annotation_type)
        for place, leaf in leaves(value, (i,)):
            if leaf is None:
                constants[place] = None
            elif isinstance(leaf, torch.Tensor):
                aligned[place] = [["tt.divisibility", 16]]
    source = ASTSource(noted.kernel, signature, constants, aligned)
    num_warps = tiling.hardware.warps_of(noted.num_warps, target.warp_size)
    return triton.compile(source, target=target, options={"num_warps": num_warps, "enable_fp_fusion": True})


def _instructions(cubin):
    """The number of instructions (16 bytes each) in an ELF file's executable section, without padding."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, sections = struct.unpack_from("<HH", cubin, 58)
    for section in range(table, table + size * sections, size):
        flags, _, offset, length = struct.unpack_from("<QQQQ", cubin, section + 8)
        if flags & EXECUTABLE:
            opcodes = (word & 0xFFF for word, _ in struct.iter_unpack("<QQ", cubin[offset : offset + length]))
            return sum(opcode != NOP for opcode in opcodes)


def nvidia_machine_code(compiled):
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.check_output([tool, "--dump-resource-usage", cubin.name], text=True)
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    ptx = compiled.asm["ptx"]
    accesses = re.findall(r"(?:ld|st)\.global[\w.:]*?(?:\.v(\d))?\.[bufs](\d+)\b", ptx)
    widths = [int(vector or 1) * int(bits) // 8 for vector, bits in accesses]
    barriers = len(re.findall(r"\bbar(?:rier)?\.sync", ptx))
    waits = re.findall(r"cp\.async\.wait_group\s+(\d+)", ptx)
    in_flight = max(map(int, waits), default=0)
    roots = len(re.findall(r"\br?sqrt\.approx(?:\.ftz)?\.f32", ptx))
    instructions = _instructions(compiled.asm["cubin"])
    return MachineCode(registers, stack, widths, barriers, instructions, roots, in_flight)


def amd_machine_code(compiled):
    text = compiled.asm["amdgcn"]

    def field(name):
        return int(re.search(rf"\.{name}:\s+(\d+)", text).group(1))

    operations = re.findall(r"^\t([a-z]+_\w+)", text, re.MULTILINE)
    accesses = re.findall(rf"(?:global|buffer)_(?:load|store)_({'|'.join(AMD_WIDTHS)})\b", text)
    return MachineCode(
        registers=field("vgpr_count"),
        spill_bytes=4 * (field("vgpr_spill_count") + field("sgpr_spill_count")),
        access_bytes=[AMD_WIDTHS[name] for name in accesses],
        barriers=operations.count("s_barrier"),
        instructions=len(operations),
        approximate_roots=0,  # not counted for this compiler
        copies_in_flight=0,
    )


def tile_elements(compiled):
    """The elements of a kernel's largest load or store."""
    tiles = re.findall(r"tt\.(?:load|store) .*?: tensor<([\dx]+)x!tt\.ptr", compiled.asm["ttir"])
    return max((prod(map(int, tile.split("x"))) for tile in tiles), default=1)


def describe(case, noted, target_name):
    target = TARGETS[target_name]
    compiled, tiles = compile_launch(noted, target), getattr(noted.arguments.get("TILE"), "tiles", 1)
    code = (nvidia_machine_code if target.backend == "cuda" else amd_machine_code)(compiled)
    threads = compiled.metadata.num_warps * target.warp_size
    if noted.arguments.get("seed_ptr") is not None and 8 in code.access_bytes:
        code.access_bytes.remove(8)  # that of the seed, one for all elements
    return dict(
        operation=case.operation,
        case=str(case),
        kernel=noted.kernel.__name__,
        target=target_name,
        threads=threads,
        registers=code.registers,
        spill_bytes=code.spill_bytes,
        shared_bytes=compiled.metadata.shared,
        widest_access_bytes=max(code.access_bytes),
        narrowest_access_bytes=min(code.access_bytes),
        copies_in_flight=code.copies_in_flight,
        barriers=code.barriers,
        approximate_roots=code.approximate_roots,
        instructions_per_element=round(code.instructions * threads / (tile_elements(compiled) * tiles), 1),
    )


def describe_case(case, targets):
    return [describe(case, noted, target) for noted in launches(case) for target in targets]


def add_arguments(parser):
    parser.add_argument(
        "--targets",
        nargs="+",
        choices=TARGETS,
        default=list(TARGETS),
        metavar="GPU",
        help=f"architectures to compile for (default: {' '.join(TARGETS)})",
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        default=["bf16"],
        metavar="DTYPE",
        help=f"dtypes of the cases, of {' '.join(DTYPES)} (default: bf16)",
    )


def run(arguments, budget):
    chosen = [case for case in cases("static", arguments.operations) if SHORT[case.dtype] in arguments.dtypes]
    for records in in_processes(budget, chosen, describe_case, arguments.targets):
        yield from records


def table(records):
    """A row for each kernel and target with the worst figures of its variants."""
    groups = {}
    for record in records:
        groups.setdefault((record["kernel"], record["target"]), []).append(record)
    headers = (
        "kernel | target | variants | registers | spill B | shared B | access B | barriers | instr./element"
    )
    rows = []
    for (kernel, target), group in sorted(groups.items()):
        column = {name: [record[name] for record in group] for name in group[0]}
        rows.append(
            (
                kernel.removesuffix("_kernel"),
                target,
                len({tuple(record.values())[4:] for record in group}),
                max(column["registers"]),
                max(column["spill_bytes"]),
                max(column["shared_bytes"]),
                min(column["widest_access_bytes"]),
                max(column["barriers"]),
                max(column["instructions_per_element"]),
            )
        )
    return tables.explained(tables.text(headers, rows, grouped=1), WORDS)


WORDS = (
    "A line above the targets is a kernel. variants: its compilations that differ in what is counted; of "
    "them a row has the worst. registers: of a thread. spill: bytes of a thread that registers do not "
    "hold. shared: bytes of shared memory of a program. access: bytes of the widest load or store of a "
    "thread; 16 are the most, and the worst is the variant with the fewest. barriers: in the code. "
    "instr./element: instructions of the whole kernel, each counted once, of all threads of a program, "
    "over the elements of its largest load or store, or of all tiles of a row."
)
CAPTION = "compiled ahead of time, not run; the worst over the cases; access: the widest, a thread"
