"""What the compilers make of every kernel, without a GPU: registers, spills, access widths.

The launchers run on meta tensors with the launch itself replaced by a note of what would be launched. Each
noted launch is then compiled ahead of time for every target, with the specialisation a GPU run would get
for tensors that start at a multiple of 16 bytes.

    python -m bench.static [--targets sm_90 gfx942] [--json]
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from normreg.kernels import batch_norm, dropout, launch, layer_norm

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    kernel: Callable
    arguments: dict
    num_warps: int


@dataclass(frozen=True)
class Compiled:
    case: str
    kernel: str
    target: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    widest_access_bytes: int
    narrowest_access_bytes: int


def noted_launches(call):
    """The launches that `call()` would make."""
    noted = []

    def note(kernel, grid, device, *arguments, num_warps, **constants):
        names = [name for name in kernel.arg_names if name not in constants]
        noted.append(Launch(kernel, dict(zip(names, arguments, strict=True)) | constants, num_warps))

    original, launch.launch = launch.launch, note
    try:
        call()
    finally:
        launch.launch = original
    return noted


def _type(parameter, value):
    if parameter.is_constexpr or value is None:
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if parameter.annotation_type:
        return parameter.annotation_type
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compile_launch(noted, target):
    parameters = [(p, noted.arguments[p.name]) for p in noted.kernel.params]
    signature = {p.name: _type(p, value) for p, value in parameters}
    constants = {(i,): value for i, (p, value) in enumerate(parameters) if signature[p.name] == "constexpr"}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (_, value) in enumerate(parameters)
        if isinstance(value, torch.Tensor)
    }
    source = ASTSource(noted.kernel, signature, constants, aligned)
    return triton.compile(
        source, target=target, options={"num_warps": noted.num_warps, "enable_fp_fusion": True}
    )


def _nvidia_resources(compiled):
    """(registers, bytes of local memory) a thread, read off the machine code."""
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.check_output([cuobjdump, "--dump-resource-usage", cubin.name], text=True)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return int(registers), int(stack)


def _amd_resources(compiled):
    def field(name):
        return int(re.search(rf"\.{name}:\s+(\d+)", compiled.asm["amdgcn"]).group(1))

    return field("vgpr_count"), 4 * (field("vgpr_spill_count") + field("sgpr_spill_count"))


def access_widths(compiled):
    """Bytes a thread moves with each access of global memory."""
    if "ptx" in compiled.asm:
        found = re.findall(r"(?:ld|st)\.global[\w.:]*?(?:\.v(\d))?\.[bufs](\d+)\b", compiled.asm["ptx"])
        return [int(vector or 1) * int(bits) // 8 for vector, bits in found]
    widths = {
        "dwordx4": 16,
        "dwordx3": 12,
        "dwordx2": 8,
        "dword": 4,
        "ushort": 2,
        "short": 2,
        "ubyte": 1,
    }
    pattern = rf"(?:global|buffer)_(?:load|store)_({'|'.join(widths)})\b"
    return [widths[name] for name in re.findall(pattern, compiled.asm["amdgcn"])]


def describe(case, noted, name):
    target = TARGETS[name]
    compiled = compile_launch(noted, target)
    registers, spill = (_nvidia_resources if target.backend == "cuda" else _amd_resources)(compiled)
    widths = access_widths(compiled)
    shared = compiled.metadata.shared
    return Compiled(case, noted.kernel.__name__, name, registers, spill, shared, max(widths), min(widths))


def _like(x, *shape):
    return torch.empty(shape, dtype=x.dtype, device=x.device)


def layer_norm_cases(dtype, cols):
    x = torch.empty(4096, cols, dtype=dtype, device="meta")
    weight, bias = _like(x, cols), _like(x, cols)
    statistics = torch.empty(2, 4096, dtype=launch.compute_dtype(dtype), device="meta")
    mean, rstd = statistics
    yield "forward", lambda: layer_norm.layer_norm_forward(x, weight, bias, cols, 1e-5, dtype, True)
    wanted = (True, True, True)
    yield (
        "backward",
        lambda: layer_norm.layer_norm_backward(x, x, weight, mean, rstd, cols, dtype, wanted),
    )


def batch_norm_cases(dtype, shape, memory_format):
    x = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=memory_format)
    channels = shape[1]
    weight, bias = _like(x, channels), _like(x, channels)
    mean, rstd = torch.empty(2, channels, dtype=launch.compute_dtype(dtype), device="meta")
    tracked = torch.empty((), dtype=torch.int64, device="meta")
    yield (
        "train",
        lambda: batch_norm.batch_norm_forward(x, weight, bias, mean, rstd, tracked, None, 1e-5, True),
    )
    yield "infer", lambda: batch_norm.batch_norm_inference(x, weight, bias, mean, rstd, 1e-5, False)
    backward = partial(
        batch_norm.batch_norm_backward, x, x, weight, mean, rstd, dtype, wanted=(True, True, True)
    )
    yield "backward", partial(backward, training=True)
    yield "backward of inference", partial(backward, training=False)


def cases(dtypes=DTYPES):
    """(label, call) for every kernel and every tile that `launch.py` would choose."""
    for dtype in dtypes:
        short = str(dtype).removeprefix("torch.")
        for cols in (64, 768, 1024, 4096, 8192, 16384, 65536):
            for direction, call in layer_norm_cases(dtype, cols):
                yield f"layer_norm {direction} {short} 4096x{cols}", call
        for shape, memory_format in (
            ((32, 64, 56, 56), torch.contiguous_format),
            ((32, 64, 56, 56), torch.channels_last),
            ((32, 512, 7, 8), torch.contiguous_format),
            ((256, 512, 1, 1), torch.contiguous_format),
        ):
            size = "x".join(map(str, shape)) + (
                " channels_last" if memory_format is torch.channels_last else ""
            )
            for direction, call in batch_norm_cases(dtype, shape, memory_format):
                yield f"batch_norm {direction} {short} {size}", call
        x = torch.empty(2**20, dtype=dtype, device="meta")
        yield f"dropout {short}", partial(dropout.dropout, x, p=0.1, seed=1)
        yield (
            f"alpha dropout {short}",
            partial(dropout.dropout, x, p=0.1, seed=1, constants=dropout.alpha),
        )
        for leading, shape, memory_format in (
            (2, (32, 64, 56, 56), torch.contiguous_format),
            (2, (32, 64, 56, 56), torch.channels_last),
            (2, (32, 512, 2, 4), torch.contiguous_format),
            (1, (32, 197, 768), torch.contiguous_format),
        ):
            x = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=memory_format)
            last = " channels_last" if memory_format is torch.channels_last else ""
            yield (
                f"dropout of {'channels' if leading == 2 else 'samples'} {short} "
                f"{'x'.join(map(str, shape))}{last}",
                partial(dropout.dropout, x, p=0.1, seed=1, leading=leading),
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    dtypes = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=dtypes)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()

    header = f"{'target':8}{'registers':>10}{'spill B':>9}{'shared B':>10}{'access B':>10}  kernel, case"
    if not arguments.json:
        print(header)
    for case, call in cases([getattr(torch, name) for name in arguments.dtypes]):
        for noted in noted_launches(call):
            for target in arguments.targets:
                row = describe(case, noted, target)
                if arguments.json:
                    print(json.dumps(asdict(row)), flush=True)
                else:
                    access = f"{row.narrowest_access_bytes}-{row.widest_access_bytes}"
                    print(
                        f"{row.target:8}{row.registers:10}{row.spill_bytes:9}{row.shared_bytes:10}{access:>10}"
                        f"  {row.kernel}, {row.case}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
