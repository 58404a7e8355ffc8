"""Sums and products that are rounded once, where numpy would round twice.

A result rounded to odd is itself where it is exact, and otherwise the neighbour whose last bit is 1. Rounding
it again, to a type with at least two bits less, gives what a single rounding would (Boldo and Melquiond,
"Emulation of FMA and correctly rounded sums", 2008).
"""

from fractions import Fraction

import numpy as np

from .values import NORMAL, Array

SPLITTER = float(2**27 + 1)
SMALLEST_FACTOR, LARGEST_ADDEND = 2.0**-400, 2.0**900  # between them no term of an error over- or underflows
HALF_OF_SINGLE = np.uint64(1 << 28)  # the bits of float64 below those of float32, where they are halfway
BELOW_SINGLE = np.uint64((1 << 29) - 1)


def sum_and_error(a: Array, b: Array) -> tuple[Array, Array]:
    """A rounded sum and its error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def product_and_error(a: Array, b: Array) -> tuple[Array, Array]:
    """A rounded float64 product and its error."""
    product = a * b
    a_high, b_high = (x * SPLITTER - (x * SPLITTER - x) for x in (a, b))
    a_low, b_low = a - a_high, b - b_high
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def to_odd(rounded: Array, error: Array) -> Array:
    """A number rounded to odd, from the rounded one and its error."""
    bits = rounded.view(f"u{rounded.itemsize}")
    one = bits.dtype.type(1)
    away = np.signbit(error) == np.signbit(rounded)
    odd = np.where(away, bits + one, bits - one).view(rounded.dtype)
    return np.where((error != 0) & ((bits & one) == 0) & np.isfinite(rounded), odd, rounded)


def odd_sum(a: Array, b: Array) -> Array:
    """A float64 sum rounded to odd."""
    return to_odd(*sum_and_error(a, b))


def odd_single(x: Array) -> Array:
    """A float64 number as float32, rounded to odd."""
    rounded = x.astype(np.float32)
    return to_odd(rounded, np.where(np.isfinite(rounded), x - rounded, 0))


def single_sum(a: Array, b: Array) -> Array:
    """A sum of float64 numbers rounded once to float32."""
    total = a + b
    rounded = total.astype(np.float32)
    # rounded twice are only sums halfway between two float32 numbers, and subnormals, which have fewer bits
    doubtful = (total.view(np.uint64) & BELOW_SINGLE) == HALF_OF_SINGLE
    magnitude = np.abs(rounded)
    if not np.minimum.reduce(magnitude) >= NORMAL:
        doubtful |= (magnitude < NORMAL) & (magnitude > 0)
    if not np.count_nonzero(doubtful):
        return rounded
    at = np.flatnonzero(doubtful)
    a, b = (x if x.shape[0] == 1 else x[at] for x in (a, b))
    rounded[at] = odd_sum(a, b).astype(np.float32)
    return rounded


def fused_double(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float64 numbers, rounded once."""
    product, error = product_and_error(a, b)
    low, lower = sum_and_error(c, error)
    high, rest = sum_and_error(product, low)
    result = high + odd_sum(rest, lower)
    ordinary = [is_factor(np.abs(a)), is_factor(np.abs(b)), np.abs(c) < LARGEST_ADDEND]
    if not all(x.all() for x in ordinary):
        zero = (a == 0) | (b == 0)
        result = np.where(zero, product + c, result)
        a, b, c = (np.broadcast_to(x, result.shape) for x in (a, b, c))
        for at in np.flatnonzero(~(zero | ordinary[0] & ordinary[1] & ordinary[2])):
            result[at] = fused_exactly(a[at], b[at], c[at])
    return result


def is_factor(magnitude: Array) -> Array:
    """Where factors are in the range in which the error of a product is exact."""
    return (magnitude > SMALLEST_FACTOR) & (magnitude < 1 / SMALLEST_FACTOR)


def fused_exactly(a: np.float64, b: np.float64, c: np.float64) -> np.float64:
    """a * b + c of any three numbers, rounded once."""
    if not (np.isfinite(a) and np.isfinite(b)):
        return a * b + c
    if not np.isfinite(c):
        return c
    total = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if total == 0:  # the two terms have opposite signs
        return np.float64(0)
    try:
        return np.float64(float(total))
    except OverflowError:
        return np.copysign(np.inf, -1.0 if total < 0 else 1.0)
