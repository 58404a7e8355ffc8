"""Device helpers on values: means and sums of squared deviations, and how to merge them.

A mean is two numbers, its rounded value and what that lacks, so that a mean of 10^6 moves no deviation:

    high = sum(x) / n,  low = sum(x - high) / n,  x - mean = (x - high) - low

Sums of squares are of deviations, never E[x^2] - E[x]^2. Where all x are equal, x - high is the same few
units in the last place, whose sum is exact and, divided correctly, itself again: all deviations are 0.
Partial results are merged by Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
computing sample variances" (1979):

    n = n_a + n_b,  mean = mean_a + (mean_b - mean_a) n_b / n
    m2 = m2_a + m2_b + (mean_b - mean_a)^2 n_a n_b / n
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Mean(NamedTuple):
    """A mean as the sum of two numbers, of which the second is small."""

    high: Any
    low: Any


class Std(NamedTuple):
    """sqrt(var + eps) as value (1 + error): value is rounded, error what that lacks, or 0 in float64."""

    value: Any
    error: Any


@triton.constexpr_function
def compute_dtype(*dtypes):
    """The dtype of arithmetic on elements of the dtypes: float64 where one is float64, else float32."""
    return tl.float64 if tl.float64 in dtypes else tl.float32


@triton.constexpr_function
def promoted(dtype, other):
    """The dtype of the sum of elements of two floating-point dtypes, torch.promote_types's."""
    if dtype == other or dtype.primitive_bitwidth > other.primitive_bitwidth:
        return dtype
    return other if dtype.primitive_bitwidth < other.primitive_bitwidth else tl.float32


@triton.jit
def std_of(var, eps):
    """sqrt(var + eps): what is divided by it is rounded once less than what is multiplied by rstd."""
    shifted = var + tl.full([], eps, var.dtype)
    if var.dtype == tl.float64:
        return tl.sqrt(shifted)
    else:
        return tl.sqrt_rn(shifted)


@triton.jit
def exact_std(var, eps):
    """The `Std` of a variance."""
    value = std_of(var, eps)
    if var.dtype == tl.float64:
        return Std(value, tl.zeros_like(value))
    else:
        shifted = var + tl.full([], eps, var.dtype)
        return Std(value, tl.fma(-value, value, shifted) / (2.0 * shifted))


@triton.jit
def divide_by_std(a, std):
    """a / std, nearly as if rounded once."""
    ratio = divide(a, std.value)
    if ratio.dtype == tl.float64:
        return ratio
    else:
        value = tl.zeros_like(ratio) + std.value
        error = tl.zeros_like(ratio) + std.error
        lost = tl.fma(-a, error, tl.fma(-ratio, value, a)) / value
        return ratio + tl.where(lost == lost, lost, 0.0)  # NaN of 0 / 0 and inf - inf


@triton.jit
def rstd_of(var, eps):
    """1 / sqrt(var + eps): `rsqrt` of float32 takes a subnormal number for 0, and `sqrt` is approximate."""
    if var.dtype == tl.float64:
        return tl.rsqrt(var + tl.full([], eps, var.dtype))
    else:
        return tl.div_rn(1.0, std_of(var, eps))


@triton.jit
def divide(a, b):
    """a / b, correctly rounded; b of any dtype."""
    b = b.to(a.dtype)
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def two_sums(a, b, AXIS: tl.constexpr):
    """The sums of a and of b along AXIS, which warps exchange at once."""
    return tl.split(tl.sum(tl.join(a, b), AXIS))


@triton.jit
def rounded_mean(x, count, AXIS: tl.constexpr):
    """The mean of `count` elements along AXIS, the others 0; no sum is larger than the largest element."""
    SHARE: tl.constexpr = 1.0 / x.shape[AXIS]  # a power of two
    return divide(tl.sum(x * SHARE, AXIS), count.to(x.dtype) * SHARE)


@triton.jit
def sum_of_squares(x):
    """The sum over each row of x^2 [rows, elements].

    A thread adds four neighbours first and then these sums: after an outlier 10 additions of 32 instead of 31
    round by its size.
    """
    WIDTH: tl.constexpr = min(4, x.shape[1])
    fours = tl.reshape(x * x, [x.shape[0], x.shape[1] // WIDTH, WIDTH])
    return tl.sum(tl.sum(fours, 2), 1)


@triton.jit
def sum_of(a, b):
    """a + b as a `Mean`, by Knuth's two-sum."""
    high = a + b
    of_b = high - a
    return Mean(high, (a - (high - of_b)) + (b - of_b))


@triton.jit
def merge_moments(count_a, mean_a, m2_a, count_b, mean_b, m2_b):
    """Count, mean and m2 of the union of two disjoint samples, of which b is not empty."""
    count = count_a + count_b
    delta = mean_b - mean_a
    mean = mean_a + delta * (count_b / count)
    m2 = m2_a + m2_b + delta * delta * (count_a * count_b / count)
    return count, mean, m2


@triton.jit
def merge_partials(count, mean, m2):
    """`merge_moments` of all rows of [partials, channels] at once; absent partials have count 0."""
    total = tl.sum(count, 0)
    merged = tl.sum(count * mean, 0) / total
    deviation = mean - merged[None, :]
    return total, merged, tl.sum(m2 + count * deviation * deviation, 0)
