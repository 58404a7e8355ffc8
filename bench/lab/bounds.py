"""Refuses every address outside a launch's tensors that a kernel in Triton's interpreter loads or stores.

All memory accesses of the interpreter go through four functions of one module, and all launches through one
class; `Bounds` intercepts both. An access belongs to the tensor of the launch that holds its addresses. Where
no single one holds them all, it is out of bounds.
"""

import contextlib
import inspect
from unittest import mock

import numpy
import torch
from triton.runtime import interpreter


class OutOfBounds(IndexError):
    """A kernel touched memory outside the tensors that it was given."""


class Argument:
    """A tensor of a launch, and where it lies."""

    def __init__(self, name, tensor):
        self.name, self.shape, self.dtype = name, tuple(tensor.shape), tensor.dtype
        self.begin = tensor.data_ptr()
        elements = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        self.end = self.begin + (elements * tensor.element_size() if tensor.numel() else 0)

    def distance(self, address):
        return max(self.begin - address, address - self.end, 0)


def tensors_of(arguments):
    """(name, tensor) of every tensor among a kernel's arguments, those in NamedTuples included."""
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            for field_name, tensor in tensors_of(value._asdict()):
                yield f"{name}.{field_name}", tensor


class _ReportedMemory:
    """The interpreter's memory functions, which report to `access` before they act."""

    def __init__(self, original, access):
        self._original, self._access = original, access

    def __getattr__(self, name):
        return getattr(self._original, name)

    def load(self, pointers, mask, other, dtype):
        self._access("a load", pointers, mask, numpy.dtype(dtype).itemsize)
        return self._original.load(pointers, mask, other, dtype)

    def store(self, pointers, value, mask):
        self._access("a store", pointers, mask, value.dtype.itemsize)
        return self._original.store(pointers, value, mask)

    def atomic_rmw(self, operation, pointers, value, mask, order):
        self._access("an atomic", pointers, mask, value.dtype.itemsize)
        return self._original.atomic_rmw(operation, pointers, value, mask, order)

    def atomic_cas(self, pointers, expected, value, order):
        self._access("an atomic", pointers, numpy.ones(pointers.shape, bool), value.dtype.itemsize)
        return self._original.atomic_cas(pointers, expected, value, order)


class Bounds:
    """Raises OutOfBounds, while it is entered, before a kernel's access outside the tensors of its launch."""

    def __init__(self):
        self._kernel, self._arguments = "", []  # of the launch that runs
        self._patches = contextlib.ExitStack()

    def __enter__(self):
        executor = interpreter.GridExecutor
        run, to_host = executor.__call__, executor._init_args_hst

        def run_bounded(grid_executor, *arguments, **options):
            try:
                return run(grid_executor, *arguments, **options)
            except interpreter.InterpreterError as error:
                cause = error
                while isinstance(cause, interpreter.InterpreterError):  # one for each kernel function
                    cause = cause.__cause__
                if isinstance(cause, OutOfBounds):
                    raise cause from None
                raise

        def to_host_noted(grid_executor, arguments, options):
            on_host = to_host(grid_executor, arguments, options)
            named = inspect.getcallargs(grid_executor.fn, *on_host[0], **on_host[1])
            self._kernel = grid_executor.fn.__name__
            self._arguments = [Argument(name, value) for name, value in tensors_of(named)]
            return on_host

        memory = _ReportedMemory(interpreter._interpreter, self._access)
        for target, name, replacement in (
            (executor, "__call__", run_bounded),
            (executor, "_init_args_hst", to_host_noted),
            (interpreter, "_interpreter", memory),
        ):
            self._patches.enter_context(mock.patch.object(target, name, replacement))
        return self

    def __exit__(self, *_):
        self._patches.close()

    def _access(self, kind, pointers, mask, width):
        addresses = pointers[mask]
        if not addresses.size:
            return
        first, last = int(addresses.min()), int(addresses.max()) + width
        if not any(one.begin <= first and last <= one.end for one in self._arguments):
            raise OutOfBounds(_describe(self._kernel, self._arguments, kind, first, last))


def _describe(kernel, arguments, kind, first, last):
    """Says what a kernel did outside its tensors, relative to the nearest one."""
    program = ", ".join(map(str, interpreter.interpreter_builder.grid_idx))
    told = f"{kernel}, program ({program}): {kind}"
    if not arguments:
        return f"{told} in a launch that was given no tensor"
    nearest = min(arguments, key=lambda argument: argument.distance(first) + argument.distance(last))
    reaches = []
    if first < nearest.begin:
        reaches.append(f"begins {nearest.begin - first:,} bytes before")
    if last > nearest.end:
        reaches.append(f"ends {last - nearest.end:,} bytes past the end of")
    return f"{told} {' and '.join(reaches)} {nearest.name}, a {nearest.dtype} tensor {nearest.shape}"
