"""Numbers of the types of PTX as bits, and what an instruction makes of them in exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np

# digits of the significand, least and greatest exponent
FORMATS = {"f16": (11, -14, 15), "bf16": (8, -126, 127), "f32": (24, -126, 127), "f64": (53, -1022, 1023)}


def width(kind):
    return 1 if kind == "pred" else int(kind.lstrip("bfnsu"))


def is_float(kind):
    return kind in FORMATS


def numbers(bits, kind):
    """Python's numbers for bits, an array of unsigned integers."""
    size = width(kind)
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).tolist()
    if is_float(kind):
        return bits.view(f"f{size // 8}").tolist()
    return bits.view(f"i{size // 8}").tolist() if kind[0] == "s" else bits.tolist()


def infinity(kind):
    digits, least, most = FORMATS[kind]
    return (most - least + 2) << (digits - 1)


def exponent(value):
    """Exponent of the greatest power of two that is not greater than a positive fraction."""
    e = value.numerator.bit_length() - value.denominator.bit_length()
    return e - (value < Fraction(2) ** e)


def rounded(value, kind):
    """Bits of the number of a type nearest to an exact one, ties to even; too large is infinite."""
    digits, least, _ = FORMATS[kind]
    sign = (1 << (width(kind) - 1)) * (value < 0)
    e = max(exponent(abs(value)), least)
    units = round(abs(value) / Fraction(2) ** (e - digits + 1))  # of the last place
    return sign | min(((e - least) << (digits - 1)) + units, infinity(kind))


def bits_of(value, kind):
    """Bits of a type for a number: an integer keeps its lowest, a fraction or float rounds once."""
    if not is_float(kind):
        return int(value) & ((1 << width(kind)) - 1)
    if isinstance(value, Fraction) and value:
        return rounded(value, kind)
    if math.isnan(value):
        return (1 << (width(kind) - 1)) - 1  # all ones but the sign
    if value == 0 or math.isinf(value):
        sign = math.copysign(1, value) < 0
        return (sign << (width(kind) - 1)) | (infinity(kind) if value else 0)
    return rounded(Fraction(value), kind)


def once_rounded(formula):
    """The formula in rational numbers, and as float64 where it has no such result or the result is a zero."""

    def exact(*values):
        if all(map(math.isfinite, values)):
            try:
                result = formula(*map(Fraction, values))
            except ZeroDivisionError:
                result = 0
            if result:
                return result
        else:  # beside an infinite number the size of others is no matter, and must not overflow
            values = [math.copysign(1, v) if v and math.isfinite(v) else v for v in values]
        with np.errstate(all="ignore"):
            return float(formula(*map(np.float64, values)))

    return exact


def flushed(value, kind="f32"):
    """The number, or a zero of its sign where it is subnormal."""
    return math.copysign(0.0, value) if abs(value) < 2.0 ** FORMATS[kind][1] else value


def square_root(value):
    """A fraction that rounds as the square root does, or that itself where it is no fraction."""
    if math.isnan(value) or value < 0:
        return math.nan
    if value == 0 or math.isinf(value):
        return value
    scaled = Fraction(value) * 4**700
    root = math.isqrt(math.floor(scaled))
    return Fraction(2 * root + (root * root != scaled), 2**701)  # odd where something is cut off
