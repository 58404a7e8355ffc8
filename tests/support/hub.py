"""Hugging Face's package `kernels`, which our folder of that name hides from a checkout's root, at work."""

import contextlib
import functools
import importlib.util
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import torch

import normreg
from normreg.functional import dispatch

ROOT = Path(__file__).parents[2]
DECORATED = re.compile(r'^@use_kernel_forward_from_hub\("(\w+)"\)\n(?:[@#].*\n)*class (\w+)', re.MULTILINE)


@functools.cache
def spec():
    return PathFinder.find_spec("kernels", [path for path in sys.path if Path(path).resolve() != ROOT])


PACKAGE = []  # once it is imported


@contextlib.contextmanager
def hugging_faces_kernels():
    """The package, under its name."""
    absent = object()
    before = sys.modules.get("kernels", absent)
    sys.modules["kernels"] = PACKAGE[0] if PACKAGE else importlib.util.module_from_spec(spec())
    if not PACKAGE:
        PACKAGE.append(sys.modules["kernels"])
        spec().loader.exec_module(*PACKAGE)
    try:
        yield sys.modules["kernels"]
    finally:
        if before is absent:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = before


def decorated():
    """{import path: name} of the classes of transformers that carry the name of one of our layers."""
    root = Path(importlib.util.find_spec("transformers").origin).parent
    found = {}
    for file in sorted(root.glob("models/*/modeling_*.py")):
        for name, cls in DECORATED.findall(file.read_text()):
            if name in normreg.hub.modes.NAMES:
                found[".".join(("transformers", *file.relative_to(root).with_suffix("").parts, cls))] = name
    return found


def kernelized(model, compiled=False, repository=None, training=True):
    """The model, whose decorated layers get our forward."""
    with hugging_faces_kernels() as kernels:
        mode = kernels.Mode.TRAINING if training else kernels.Mode.INFERENCE
        mode = mode | kernels.Mode.TORCH_COMPILE if compiled else mode
        with kernels.use_kernel_mapping(normreg.hub.mapping(repository)):
            return kernels.kernelize(model, mode=mode, device=torch.empty(0).device.type, use_fallback=False)


@contextlib.contextmanager
def decorated_as(name, *classes):
    """The classes as they are where transformers finds `kernels`."""
    with hugging_faces_kernels() as kernels:
        for cls in classes:
            kernels.replace_kernel_forward_from_hub(cls, name)
    yield
    for cls in classes:
        del cls.kernel_layer_name, cls.kernel_condition


@contextlib.contextmanager
def paths_taken():
    """A list that is filled with why each call went to torch's operator, None where it took the kernel."""
    reasons = []
    with dispatch.watched(lambda operation, x, reason: reasons.append(reason)):
        yield reasons
