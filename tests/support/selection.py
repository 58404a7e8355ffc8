"""Which of the collected tests a session runs, and what their kernels run on.

Without `--all` and without a GPU: none that is slow; of one that is marked `some(n)` n sets of parameters;
of tests that differ only in a floating dtype, or in training and evaluation, one, in bfloat16 or float32;
and of each test of kernels some sets of parameters on compiled code and the others in the interpreter,
because each has kernels of its own to be compiled.
"""

import re
import zlib

import pytest

# Folders of the tests with a marker. `gpu`: they show what a GPU alone can show, the kernels compiled, in its
# memory, beside torch's own kernels. `compiled`: they run on compiled code where there is no GPU.
FOLDERS = {"gpu": ("kernels", "contract"), "compiled": ("kernels", "lab")}
NEVER_INTERPRETED = "lab"  # tests of compiled code itself, which need no GPU
COMPILED_OF_EACH = 2  # sets of parameters of a test
ALIKE = re.compile(r"torch\.(float16|bfloat16|float32|float64|complex64|complex128)\b|\b(train|eval)\b")
USUAL = re.compile(r"torch\.(bfloat16|float32)\b")


def folder(path):
    """Name of the folder that a file is in, or of a folder itself."""
    path = path.absolute()
    return path.parent.name if path.suffix == ".py" else path.name


def drawn(nodeid):
    """A number that looks random, of the test's name alone: the same in every process and for every file."""
    return zlib.crc32(nodeid.partition("::")[2].encode())


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
    """The sets of parameters that run: as many as the test's marker `some` says, or all."""
    marker = alike[0].get_closest_marker("some")
    return sorted(alike, key=lambda item: drawn(item.nodeid))[: marker.args[0]] if marker else alike


def mark(items, on_a_gpu, everything, interpreted):
    """Adds the markers gpu and compiled, and skips what needs the other kind of kernels."""
    for item in items:
        if item.get_closest_marker("interpreter") and not interpreted:
            item.add_marker(pytest.mark.skip(reason="needs Triton's interpreter"))
        elif folder(item.path) == NEVER_INTERPRETED and interpreted:
            item.add_marker(pytest.mark.skip(reason="needs kernels compiled"))
    items = [item for item in items if not item.get_closest_marker("interpreter")]
    ids = {item.nodeid for item in items} if on_a_gpu else set()
    for item in items:
        # of tests in both 16-bit dtypes a GPU runs the one that rounds more: an eighth less to compile
        twin = item.nodeid.replace("torch.float16", "torch.bfloat16")
        if folder(item.path) in FOLDERS["gpu"] and (twin == item.nodeid or twin not in ids):
            item.add_marker("gpu")
    for alike in groups(items, function).values():
        few = len(alike) if everything or folder(alike[0].path) == NEVER_INTERPRETED else COMPILED_OF_EACH
        for item in sorted(alike, key=lambda item: drawn(item.nodeid))[:few]:
            if folder(item.path) in FOLDERS["compiled"]:
                item.add_marker("compiled")
