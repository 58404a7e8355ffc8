"""Counts every byte that kernels load and store in Triton's interpreter, and refuses any other address.

All memory accesses of the interpreter go through four functions of one module, and all launches through one
class; `Meter` intercepts both. An access belongs to the tensor of the launch that holds its addresses. Where
no single one holds them all, it is out of bounds.

A launch moves each tensor once at least. What it loads or stores again is moved again where the tensor is
large, and served by a cache where it is small.
"""

import contextlib
import inspect
from dataclasses import dataclass, field
from unittest import mock

import numpy
import torch
from triton.runtime import interpreter

CACHED_BYTES = 2**20  # a tensor up to this size stays in the L2 cache of any GPU between its accesses


class OutOfBounds(IndexError):
    """A kernel touched memory outside the tensors that it was given."""


@dataclass
class Traffic:
    """Bytes of one tensor that a launch loads, or stores."""

    total: int = 0
    touched: numpy.ndarray | None = None  # which bytes of a small tensor

    def add(self, offsets, width):
        self.total += offsets.size * width
        if self.touched is not None:
            for byte in range(width):
                self.touched[offsets + byte] = True

    @property
    def once(self):
        return int(self.touched.sum())


class Argument:
    """A tensor of a launch: where it lies, and what is moved of it."""

    def __init__(self, name, tensor):
        self.name, self.shape, self.dtype = name, tuple(tensor.shape), tensor.dtype
        self.begin = tensor.data_ptr()
        elements = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        self.size = elements * tensor.element_size() if tensor.numel() else 0
        self.end = self.begin + self.size
        self.small = self.size <= CACHED_BYTES
        self.loads, self.stores = (
            Traffic(touched=numpy.zeros(self.size, bool) if self.small else None) for _ in range(2)
        )

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


@dataclass
class Launch:
    kernel: str
    arguments: list[Argument] = field(default_factory=list)

    def _traffic(self, small):
        return [
            traffic
            for argument in self.arguments
            if argument.small is small
            for traffic in (argument.loads, argument.stores)
        ]

    @property
    def large_bytes(self):
        """Bytes loaded and stored of large tensors, every time."""
        return sum(traffic.total for traffic in self._traffic(small=False))

    @property
    def small_bytes(self):
        """Bytes loaded and stored of small tensors, each byte once."""
        return sum(traffic.once for traffic in self._traffic(small=True))

    @property
    def cached_bytes(self):
        """Bytes loaded and stored of small tensors beyond the first time."""
        return sum(traffic.total for traffic in self._traffic(small=True)) - self.small_bytes


class _ReportedMemory:
    """The interpreter's memory functions, which report to `access` before they act."""

    def __init__(self, original, access):
        self._original, self._access = original, access

    def __getattr__(self, name):
        return getattr(self._original, name)

    def load(self, pointers, mask, other, dtype):
        self._access("load", pointers, mask, numpy.dtype(dtype).itemsize)
        return self._original.load(pointers, mask, other, dtype)

    def store(self, pointers, value, mask):
        self._access("store", pointers, mask, value.dtype.itemsize)
        return self._original.store(pointers, value, mask)

    def atomic_rmw(self, operation, pointers, value, mask, order):
        self._access("load", pointers, mask, value.dtype.itemsize)
        self._access("store", pointers, mask, value.dtype.itemsize)
        return self._original.atomic_rmw(operation, pointers, value, mask, order)

    def atomic_cas(self, pointers, expected, value, order):
        everywhere = numpy.ones(pointers.shape, bool)
        self._access("load", pointers, everywhere, value.dtype.itemsize)
        self._access("store", pointers, everywhere, value.dtype.itemsize)
        return self._original.atomic_cas(pointers, expected, value, order)


class Meter:
    """Counts the kernel launches made while it is entered in `launches`; `launching` is true during one.

    Raises OutOfBounds from the launch whose kernel touches an address outside the launch's tensors, before
    the access is made.
    """

    def __init__(self):
        self.launches = []
        self.launching = False
        self._patches = contextlib.ExitStack()

    def __enter__(self):
        executor = interpreter.GridExecutor
        run, to_host = executor.__call__, executor._init_args_hst

        def run_reported(grid_executor, *arguments, **options):
            self.launches.append(Launch(grid_executor.fn.__name__))
            self.launching = True
            try:
                return run(grid_executor, *arguments, **options)
            except interpreter.InterpreterError as error:
                cause = error
                while isinstance(cause, interpreter.InterpreterError):  # one for each kernel function
                    cause = cause.__cause__
                if isinstance(cause, OutOfBounds):
                    raise cause from None
                raise
            finally:
                self.launching = False

        def to_host_noted(grid_executor, arguments, options):
            on_host = to_host(grid_executor, arguments, options)
            named = inspect.getcallargs(grid_executor.fn, *on_host[0], **on_host[1])
            self.launches[-1].arguments += [Argument(name, value) for name, value in tensors_of(named)]
            return on_host

        memory = _ReportedMemory(interpreter._interpreter, self._access)
        for target, name, replacement in (
            (executor, "__call__", run_reported),
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
        first, last = int(addresses.min()), int(addresses.max())
        launch = self.launches[-1]
        for argument in launch.arguments:
            if argument.begin <= first and last + width <= argument.end:
                traffic = argument.loads if kind == "load" else argument.stores
                traffic.add((addresses - numpy.uint64(argument.begin)).astype(numpy.int64), width)
                return
        raise OutOfBounds(_describe(launch, kind, first, last, width))


def _describe(launch, kind, first, last, width):
    """Says what a kernel did outside its tensors, relative to the nearest one."""
    program = ", ".join(map(str, interpreter.interpreter_builder.grid_idx))
    told = f"{launch.kernel}, program ({program}): a {kind}"
    if not launch.arguments:
        return f"{told} in a launch that was given no tensor"
    nearest = min(launch.arguments, key=lambda argument: argument.distance(first) + argument.distance(last))
    reaches = []
    if first < nearest.begin:
        reaches.append(f"begins {nearest.begin - first:,} bytes before")
    if last + width > nearest.end:
        reaches.append(f"ends {last + width - nearest.end:,} bytes past the end of")
    return f"{told} {' and '.join(reaches)} {nearest.name}, a {nearest.dtype} tensor {nearest.shape}"
