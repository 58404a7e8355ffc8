"""Which tests a session runs, of those that are collected, and by what their kernels run.

Without `--all` and without a GPU: none that is slow; of one that is marked `some(n)` n sets of parameters;
of tests that differ only in a floating dtype, or in training and evaluation, one, in bfloat16 or float32;
and of each test of kernels some sets of parameters on compiled code and the others in the interpreter,
because each has kernels of its own to be compiled.
"""

import re
import zlib

import pytest

# Files test_*.py of kernels, which without a GPU run on compiled code.
KERNELS = (
    "rows", "layer_norm", "rms_norm", "layer_norm_channels", "batch_norm", "batch_norm_act", "group_norm",
    "instance_norm", "dropout", "dropout_family", "dropout_add", "dropout_add_norm", "l2_penalty",
    "large_reductions", "course_notes",
)  # fmt: skip
# Those whose tests `pytest -m gpu` runs, on what a GPU alone can show: the kernels compiled, in its memory,
# beside torch's own kernels.
ON_A_GPU = (
    *KERNELS, "on_gpu", "gradient", "operations", "operators", "compile", "saved_bytes", "devices", "convert",
    "dispatch",
)  # fmt: skip
# Those about compiled code, which need no GPU.
COMPILED = (
    "barriers", "instructions", "lab", "lab_counts", "lab_faults", "lab_instructions", "lab_races",
    "lab_warps", "static", "trained",
)  # fmt: skip
# The others: what a GPU shows no better, or what takes minutes.
ELSEWHERE = (
    "bench", "conftest", "cpu_kernels", "data_parallel", "diagnose", "explain", "far_offsets", "foreign",
    "fuse", "gpu_pass", "gpu_watch", "init", "instructions_table", "interpreter", "launch", "meter",
    "models", "package", "parameter_groups", "planted", "planted_notes", "processes", "readme", "report",
    "running_statistics", "smoke", "speed", "study", "sync_batch_norm", "tensor_parallel", "tiling",
    "timing", "torch_cases", "transformers", "worker",
)  # fmt: skip
FILES = {"gpu": ON_A_GPU, "compiled": (*KERNELS, *COMPILED)}  # by marker
COMPILED_OF_EACH = 2  # sets of parameters of a test
ALIKE = re.compile(r"torch\.(float16|bfloat16|float32|float64|complex64|complex128)\b|\b(train|eval)\b")
USUAL = re.compile(r"torch\.(bfloat16|float32)\b")


def stem(path):
    return path.stem.removeprefix("test_")


def drawn(text):
    """A number that looks random and is the same in every process."""
    return zlib.crc32(text.encode())


def groups(items, name):
    found = {}
    for item in items:
        found.setdefault(name(item), []).append(item)
    return found


def without_dtype_and_mode(item):
    return ALIKE.sub("", item.nodeid)


def function(item):
    return item.nodeid.partition("[")[0]


def fast(items, on_a_gpu):
    items = [item for item in items if not item.get_closest_marker("slow")]
    if on_a_gpu:
        return items
    items = [one(alike, name) for name, alike in groups(items, without_dtype_and_mode).items()]
    return [item for alike in groups(items, function).values() for item in some(alike)]


def one(alike, name):
    usual = [item for item in alike if USUAL.search(item.nodeid)] or alike
    return usual[drawn(name) % len(usual)]


def some(alike):
    """As many sets of parameters of a test as its marker `some` says, or all."""
    marker = alike[0].get_closest_marker("some")
    return sorted(alike, key=lambda item: drawn(item.nodeid))[: marker.args[0]] if marker else alike


def mark(items, on_a_gpu, everything, interpreted):
    """Adds the markers gpu and compiled, and skips what needs the other kind of kernels."""
    for item in items:
        if item.get_closest_marker("interpreter") and not interpreted:
            item.add_marker(pytest.mark.skip(reason="needs Triton's interpreter"))
        elif stem(item.path) in COMPILED and interpreted:
            item.add_marker(pytest.mark.skip(reason="needs kernels compiled"))
    items = [item for item in items if not item.get_closest_marker("interpreter")]
    ids = {item.nodeid for item in items} if on_a_gpu else set()
    for item in items:
        # of tests in both 16-bit dtypes a GPU runs the one that rounds more: an eighth less to compile
        twin = item.nodeid.replace("torch.float16", "torch.bfloat16")
        if stem(item.path) in ON_A_GPU and (twin == item.nodeid or twin not in ids):
            item.add_marker("gpu")
    for alike in groups(items, function).values():
        few = len(alike) if everything or stem(alike[0].path) in COMPILED else COMPILED_OF_EACH
        for item in sorted(alike, key=lambda item: drawn(item.nodeid))[:few]:
            if stem(item.path) in FILES["compiled"]:
                item.add_marker("compiled")
