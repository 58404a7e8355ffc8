"""Translates between the bits in registers, unsigned integers of numpy, and the numbers that they stand for.

A type is PTX's (`f32`, `s64`, `b16`, `bf16x2`, `pred`). Numpy has no bfloat16, so its numbers are float32
here, rounded to nearest even when they are written. Predicates are numpy's bools.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from .errors import Unsupported

Array = np.ndarray
UINT = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
SIZES = {"pred": 0, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "bf16x2": 4, "f16x2": 4, "f32x2": 8}
SIZES |= {f"{kind}{8 * size}": size for kind in "bus" for size in UINT}
NORMAL = np.float32(2**-126)  # the smallest normal number
FLOATS = {"f16": np.float16, "f32": np.float32, "f64": np.float64}


def size_of(ty: str) -> int:
    """Bytes of a type; 0 for a predicate."""
    if ty not in SIZES:
        raise Unsupported(f"type {ty!r}; executed are {', '.join(SIZES)}")
    return SIZES[ty]


def is_float(ty: str) -> bool:
    """Whether a type is a single floating-point number."""
    return ty == "bf16" or ty in FLOATS


@cache
def undefined(size: int) -> Array:
    """The content of a register that was never written; compilers read one where its value is irrelevant."""
    return np.ones(1, bool) if size == 0 else np.full(1, ~UINT[size](0), UINT[size])


@cache
def view_of(ty: str) -> np.dtype | None:
    """The dtype as which bits of a type can be viewed; None where they must be converted."""
    if ty == "bf16" or ty.endswith("x2"):
        return None
    size = size_of(ty)
    if ty == "pred":
        return np.dtype(bool)
    return np.dtype(FLOATS.get(ty) or (SIGNED if ty[0] == "s" else UINT)[size])


@cache
def reader(ty: str, ftz: bool = False) -> Callable[[Array], Array]:
    """Returns a function from a register's bits to numbers of type `ty`; `ftz` flushes float32 subnormals."""
    if ty == "f32" and ftz:
        return lambda bits: flushed(bits.view(np.float32))
    if ty == "bf16":
        return lambda bits: (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    view, size = view_of(ty), size_of(ty)
    if ty == "pred":
        return lambda bits: bits
    return lambda bits: (bits if bits.itemsize == size else bits.astype(UINT[size])).view(view)


@cache
def writer(ty: str, size: int, ftz: bool = False) -> Callable[[Array], Array]:
    """Returns a function from numbers to the bits of a register of `size` bytes that holds them as `ty`."""
    if ty == "f32" and ftz:
        return lambda x: flushed(x.astype(np.float32, copy=False)).view(np.uint32)
    if ty == "bf16":
        return lambda x: bfloat16_bits(x).astype(UINT[size], copy=False)
    if ty == "pred":
        return lambda x: x
    view, own, unsigned = view_of(ty), size_of(ty), np.dtype(UINT[size])
    if own == size:
        return lambda x: (x if x.dtype is view else converted(x, view)).view(unsigned)
    if ty[0] == "s":
        return lambda x: converted(x, view).astype(SIGNED[size]).view(unsigned)
    return lambda x: converted(x, view).view(UINT[own]).astype(unsigned)


def converted(x: Array, dtype: np.dtype) -> Array:
    """Numbers in another dtype. To integers, floats saturate and NaN is 0, and integers wrap."""
    if x.dtype == dtype:
        return x
    if x.dtype.kind != "f" or dtype.kind == "f":
        return x.astype(dtype)
    info = np.iinfo(dtype)
    low, high = float(info.min), float(info.max)
    x = np.where(np.isnan(x), 0, x)
    inside = x.clip(low, np.nextafter(high, 0)).astype(dtype)
    return np.where(x >= high, info.max, np.where(x <= low, info.min, inside)).astype(dtype)


def bfloat16_bits(x: Array) -> Array:
    """The bits of numbers as bfloat16, rounded to nearest even; NaN becomes PTX's canonical NaN."""
    x = x.astype(np.float32, copy=False)
    bits = x.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    # inf plus 0x7fff does not overflow, and NaN is replaced
    rounded = (bits + (odd + np.uint32(0x7FFF))) >> np.uint32(16)
    nan, rounded = np.isnan(x), rounded.astype(np.uint16)
    return np.where(nan, np.uint16(0x7FFF), rounded) if nan.any() else rounded


@cache
def float8_ties() -> Array:
    """What lies halfway between each positive number of e4m3 and the next larger one."""
    bits = np.arange(127)  # the last is 448
    exponent, digits = bits >> 3, bits & 7
    numbers = np.where(exponent, (8 + digits) * 2.0 ** (exponent - 10), digits * 2.0**-9)
    return (numbers[:-1] + numbers[1:]) / 2


def float8_bits(x: Array) -> Array:
    """The bits of numbers as e4m3, rounded to nearest even, at most 448; NaN becomes 0x7f."""
    ties, magnitude = float8_ties(), np.abs(x).astype(np.float64)
    bits = np.searchsorted(ties, magnitude)  # of a tie the lower neighbour
    bits += (bits & 1) * (ties[np.minimum(bits, len(ties) - 1)] == magnitude)
    return np.where(np.isnan(x), 0x7F, bits | np.signbit(x) * 0x80).astype(np.uint8)


def flushed(x: Array) -> Array:
    """Float32 numbers with subnormals as zeros of the same sign (.ftz)."""
    magnitude = np.abs(x)
    if np.minimum.reduce(magnitude) >= NORMAL:
        return x
    return np.where(magnitude < NORMAL, np.copysign(np.float32(0), x), x)
