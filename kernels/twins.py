"""Twins of kernels, which a compiler's graph can hold: torch's takes tensors and whole numbers as arguments.

A twin takes what its kernel takes, one by one and not in tuples, and calls it; all else that a launch knows
is a constant in the source of its twin. Inductor copies a kernel's source, and that of all it calls, into the
programs that it writes; that of a twin ends with an import, and the kernel stays where it is.
"""

import functools
import itertools
import linecache
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import wrap_triton

NUMBERS = itertools.count()  # of twins made
TYPES = {getattr(tl, name): name for name in ("bfloat16", "float16", "float32", "float64", "int64")}


class Twin(triton.JITFunction):
    """A Triton function of generated source."""

    imports = ""

    @property
    def src(self) -> str:
        """What Inductor copies. Triton parses `_src`, the function alone."""
        return self._src + self.imports


@functools.cache
def twin(name: str, source: str, imports: str) -> Twin:
    """The twin of this name, which its source defines."""
    scope: dict[str, Any] = {"tl": tl}
    exec(imports, scope)
    file = f"<twin {next(NUMBERS)} {name}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file  # where Triton reads it
    exec(compile(source, file, "exec"), scope)
    made = Twin(scope[name])
    made.imports = imports
    return made


class Written:
    """The source of a twin as far as it is known: a launch's values, each as it is written there."""

    def __init__(self, kernel: Any) -> None:
        # with what Triton would compile, so that caches of the compiler's tell an edited kernel
        self.imports = {f"import {kernel.fn.__module__} as home  # {kernel.cache_key}"}
        self.given: dict[str, Any] = {}

    def argument(self, name: str, kind: Any, value: Any) -> str:
        """The value of a parameter that is annotated with `kind`."""
        if hasattr(kind, "_fields"):
            parts = [self.value(f"{name}_{field}", None, v) for field, v in zip(kind._fields, value)]
            return f"home.{kind.__name__}({', '.join(parts)})"
        return self.value(name, kind, value)

    def value(self, name: str, kind: Any, value: Any) -> str:
        if kind is tl.constexpr or value is None:
            if hasattr(value, "_fields"):
                self.imports.add(f"from {type(value).__module__} import {type(value).__name__}")
            return f"tl.{TYPES[value]}" if isinstance(value, tl.dtype) else repr(value)
        if isinstance(kind, tl.dtype):
            # infinity has no literal, and NumPy's numbers have another one
            written = repr(int(value)) if kind.is_int() else f"float('{float(value)!r}')"
            return f"tl.full([], {written}, tl.{TYPES[kind]})"
        self.given[name] = value
        if isinstance(value, torch.Tensor):
            return name
        # Inductor makes a 1 a constant, which has no dtype; the others are Triton's own
        return f"tl.cast({name}, tl.{'int32' if -(2**31) <= value < 2**31 else 'int64'})"


def launch_twin(
    kernel: Any, grid: tuple[int, ...], num_warps: int, kinds: Sequence[Any], values: Sequence[Any]
) -> None:
    """Records the launch of a kernel. kinds: annotations of its parameters; values: of these, in order."""
    written = Written(kernel)
    arguments = [written.argument(*of_one) for of_one in zip(kernel.arg_names, kinds, values)]
    name = kernel.fn.__name__
    source = f"def {name}({', '.join(written.given)}):\n    home.{name}({', '.join(arguments)})\n"
    made = twin(name, source, "".join(f"{line}\n" for line in sorted(written.imports)))
    wrap_triton(made)[grid](**written.given, num_warps=num_warps)
