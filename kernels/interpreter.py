"""Triton's interpreter with casts from and to bfloat16 and to float8, sums, and `tl.fma` as exact as a GPU's.

Triton's own casts cut float32 off where a GPU rounds to nearest even, take subnormal numbers for others, and
write the integer part of float64 as if it were the bits of bfloat16. Its sums add in pairs along the last
axis, but one after another along others, and its fma rounds the product. Its casts to float8 round ties up
and know neither the largest number nor NaN; its maximum of a number and NaN is NaN. A kernel cannot tell;
whoever checks it on a CPU would find its errors larger than they are.
"""

import functools

import triton.language as tl
from triton.runtime import interpreter

np = interpreter.np  # numpy, which the interpreter needs and nothing else of the package
CANONICAL_NAN = 0x7FC00000


@functools.cache
def cast_bfloat16_as_gpus_do() -> None:
    """Corrects the interpreter, in this process."""
    cast = interpreter.InterpreterBuilder.cast_impl

    def corrected(self, source, type):
        given, wanted = source.dtype.scalar, type.scalar
        if wanted == tl.bfloat16 and given != tl.bfloat16:
            return interpreter.TensorHandle(bfloat16_bits(source.data), wanted)
        if given == tl.bfloat16 and wanted == tl.float32:
            return interpreter.TensorHandle(float32_of(source.data), wanted)
        return cast(self, source, type)

    interpreter.InterpreterBuilder.cast_impl = corrected


@functools.cache
def add_in_pairs() -> None:
    """Makes sums along every axis those of the last, in this process."""

    def total(self, input):
        axis = -1 if self.axis is None else self.axis
        data = input.handle.data.reshape(-1) if self.axis is None else input.handle.data
        last = np.ascontiguousarray(np.moveaxis(data, axis, -1))
        found = np.expand_dims(last.sum(-1), axis) if self.keep_dims else last.sum(-1)
        return self.to_tensor(found, input.dtype)

    interpreter.ReduceOps.sum = total


@functools.cache
def fuse_multiplication_and_addition() -> None:
    """Makes `tl.fma` of float32 round once, but for a sum within 2^-29 units of a tie, in this process."""
    fma = interpreter.InterpreterBuilder.create_fma

    def corrected(self, x, y, z):
        if z.data.dtype != np.float32:
            return fma(self, x, y, z)
        with np.errstate(all="ignore"):  # where a GPU gives inf or nan in silence
            rounded = (x.data.astype(np.float64) * y.data + z.data).astype(np.float32)
        return interpreter.TensorHandle(rounded, z.dtype.scalar)

    interpreter.InterpreterBuilder.create_fma = corrected


@functools.cache
def cast_float8_as_gpus_do() -> None:
    """Makes casts from float32 to float8_e4m3fn round to nearest even and saturate, in this process."""
    cast = interpreter.InterpreterBuilder.create_fp_to_fp

    def corrected(self, source, type, rounding):
        if (source.dtype.scalar, type.scalar) != (tl.float32, tl.float8e4nv):
            return cast(self, source, type, rounding)
        return interpreter.TensorHandle(float8_bits(source.data), tl.float8e4nv)

    interpreter.InterpreterBuilder.create_fp_to_fp = corrected


@functools.cache
def ignore_nan_in_maxima() -> None:
    """Makes the maximum of a number and NaN the number, in this process."""

    def maximum(self, a, b):
        return self.binary_op(a, b, np.fmax)

    interpreter.InterpreterBuilder.create_maxnumf = maximum


def float8_bits(x):
    """The bits of float32 numbers as float8_e4m3fn, to nearest even, at most 448; NaN becomes 0x7f."""
    nan = np.isnan(x)
    magnitude = np.minimum(np.abs(np.where(nan, 0, x)), np.float32(448))
    exponent = np.frexp(np.maximum(magnitude, np.float32(2**-6)))[1] - 1  # -6 of subnormal numbers as well
    units = np.rint(np.ldexp(magnitude, 3 - exponent)).astype(np.int32)  # of the last place
    bits = ((exponent + 6) << 3) + units
    return np.where(nan, 0x7F, bits | np.signbit(x) * 0x80).astype(np.uint8)


def bfloat16_bits(x):
    """The bits of numbers as bfloat16, rounded once, to nearest even; NaN becomes the quiet NaN."""
    with np.errstate(over="ignore"):
        single = np.asarray(x, np.float32)
    bits = single.view(np.uint32)
    if x.dtype == np.float64:
        # rounded to odd, so that the second rounding knows on which side of a tie x lies
        bits = (bits - (np.abs(single) > np.abs(x))) | (single != x)
    bits = np.where(np.isnan(single), CANONICAL_NAN, bits)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def float32_of(bits):
    """The numbers of bfloat16 that have these bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
