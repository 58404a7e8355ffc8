"""Device code for activations: y = act(z) and dz = dy act'(z), as torch.nn.functional computes them.

    relu        max(z, 0)                    gelu         z Phi(z), Phi the normal distribution
    relu6       min(max(z, 0), 6)            gelu_tanh    z sigmoid(2 u), u = sqrt(2 / pi) (z + 0.044715 z^3)
    leaky_relu  z, or slope z where z < 0    silu         z sigmoid(z)
                                             hardswish    z min(max(z + 3, 0), 6) / 6

GATES are what multiplies a norm: silu, and sigmoid, which is no activation of a layer here.

gelu and its derivative have Phi(-a) = exp(-a^2 / 2) Q(a) of a = |z| in common, instead of an erf:

    gelu(z) = max(z, 0) - a exp(-a^2 / 2) Q(a)
    gelu'(z) = w where z < 0, else 1 - w,  w = exp(-a^2 / 2) (Q(a) - a phi(0))

Nothing cancels below 0, where 1 + erf does. Q is smooth and falls from 1/2 like phi(0) / a. With t = d^-1/2

    results of 16 bits   d of degree 2 in a, Q of degree 4 in t             |error| < 1.6e-6 (1 + a^2 / 4) Q
    of float32           d = s^2 - r, s of degree 4 in a, Q = t p, p of 3   |error| < 2.5e-8 (1 + a^2 / 4) Q

which are minimax fits at 500 points of [0, 13.5], denser near 0: by least squares whose weights follow the
error (Lawson), and by Levenberg and Marquardt's in the coefficients that are not linear. p and s of float32
were multiplied by the number, and moved by the last bits, with which a float32 sweep errs least.

Value and slope are within 0.51 units of 16 bits, of float32 within 2.1 units above 0 and 2.1 + 0.45 a below
(tests/kernels/test_activations.py); a GPU's approximate exp2 and rsqrt may add 3. Below -13.2 both are 0.
float64 has its erf.

Published networks put these behind BatchNorm. The first three (LINES) consist of straight lines, one of them
of slope 1: whether an element is on that line is one bit (`is_steep`), which is all that the gradient needs.
"""

import triton
import triton.language as tl

LINES = ("relu", "relu6", "leaky_relu")
NAMES = (*LINES, "silu", "gelu", "gelu_tanh", "hardswish")
GATES = ("silu", "sigmoid")

SQRT_HALF = tl.constexpr(0.5**0.5)
NORMAL_DENSITY = tl.constexpr(0.3989422804014327)  # at 0: 1 / sqrt(2 pi)
HALF_LOG2_E = tl.constexpr(0.7213475204444817)
LOG2_E_HIGH = tl.constexpr(1.4426950216293335)  # as float32, and what that rounds off
LOG2_E_LOW = tl.constexpr(1.9259629911e-08)
LOG_2 = tl.constexpr(0.6931471805599453)
EXP_FLAT = tl.constexpr(128.0)  # exp(-x) is 0 in float32 from 104 on
GELU_FLAT = tl.constexpr(16.0)  # exp(-a^2 / 2) is 0 in float32 from 14.5 on
GELU_FLAT_DOUBLE = tl.constexpr(40.0)  # the same in float64, from 38.7 on
TWICE_SQRT_2_OVER_PI = tl.constexpr(1.5957691216057308)
GELU_CUBIC = tl.constexpr(0.044715)


@triton.jit
def is_steep(z, ACT: tl.constexpr):
    """Whether an element is on the line of slope 1 of one of LINES."""
    if ACT == "relu":
        return ~(z <= 0.0)
    elif ACT == "relu6":
        return ~((z <= 0.0) | (z >= 6.0))
    else:
        return z > 0.0


@triton.jit
def lines_backward(dy, steep, negative_slope, ACT: tl.constexpr):
    """dz of one of LINES, 0 where dy does not pass, even if it is inf or nan."""
    if ACT == "leaky_relu":
        return tl.where(steep, dy, dy * tl.full([], negative_slope, dy.dtype))
    else:
        return tl.where(steep, dy, 0.0)


@triton.jit
def exp_of_sum(x, low):
    """exp(x + low) in float32, of finite x and tiny low. A rounded x log2(e) would move it by x units."""
    power = x * LOG2_E_HIGH
    rest = tl.fma(x, LOG2_E_LOW, tl.fma(x, LOG2_E_HIGH, -power))
    e = tl.exp2(power)
    return tl.fma(e, rest * LOG_2 + low, e)


@triton.jit
def exp_of_negative(a, DTYPE: tl.constexpr):
    """exp(-a) of a at least 0, for results in DTYPE."""
    if tl.float32 == DTYPE:
        return exp_of_sum(-tl.minimum(a, EXP_FLAT, propagate_nan=tl.PropagateNan.ALL), 0.0)
    else:
        return tl.exp(-a)


@triton.jit
def reciprocal(y, DTYPE: tl.constexpr):
    """1 / y of y from 1 to 2, for results in DTYPE. `div_rn` branches, with all y in registers meanwhile."""
    ratio = 1.0 / y
    if tl.float32 == DTYPE:
        ratio = tl.fma(ratio, tl.fma(-y, ratio, 1.0), ratio)
    return ratio


@triton.jit
def times_sigmoid(z, u, DTYPE: tl.constexpr):
    """z sigmoid(u), for results in DTYPE."""
    if tl.float32 == DTYPE and z.dtype == tl.float32:  # which float64 rounded to it is not
        e = exp_of_negative(tl.abs(u), DTYPE)
        return tl.div_rn(tl.where(u >= 0.0, z, z * e), 1.0 + e)
    else:
        return z * tl.sigmoid(u)


@triton.jit
def sigmoid_and_slope(u, DTYPE: tl.constexpr):
    """sigmoid(u) and sigmoid'(u), without cancellation."""
    e = exp_of_negative(tl.abs(u), DTYPE)
    gate = reciprocal(1.0 + e, DTYPE)
    return tl.where(u >= 0.0, gate, e * gate), e * gate * gate


@triton.jit
def gate_of(z, ACT: tl.constexpr, DTYPE: tl.constexpr):
    """act(z) of one of GATES, which the caller rounds to DTYPE."""
    if ACT == "silu":
        return times_sigmoid(z, z, DTYPE)
    else:
        tl.static_assert(ACT == "sigmoid")
        gate, _ = sigmoid_and_slope(z, DTYPE)
        return gate


@triton.jit
def gate_and_slope(z, ACT: tl.constexpr, DTYPE: tl.constexpr):
    """act(z) and act'(z) of one of GATES."""
    gate, slope = sigmoid_and_slope(z, DTYPE)
    if ACT == "silu":
        return z * gate, gate + z * slope
    else:
        tl.static_assert(ACT == "sigmoid")
        return gate, slope


@triton.jit
def twice_u(z):
    """2 u, for gelu_tanh."""
    return (z + z * z * z * GELU_CUBIC) * TWICE_SQRT_2_OVER_PI


@triton.jit
def lower_tail(z, DTYPE: tl.constexpr):
    """a, exp(-a^2 / 2) and -Q(a), for results in DTYPE; nan stays nan."""
    a = tl.minimum(tl.abs(z), GELU_FLAT, propagate_nan=tl.PropagateNan.ALL)
    if tl.float32 == DTYPE:
        half = a * -0.5
        e = exp_of_sum(half * a, tl.fma(half, a, -(half * a)))
        s = ((0.18264809 * a + 1.10558391) * a + 3.42428589) * a + 5.24086714
        s = s * a + 3.38615608
        t = tl.rsqrt(s * s - 0.11407096)
        q = (((-0.072859824 * a - 0.44130054) * a - 1.28942025) * a - 1.68463516) * t
    else:
        e = tl.exp2(a * a * -HALF_LOG2_E)
        t = tl.rsqrt((0.11644593 * a + 0.63654774) * a + 1.0)
        q = (((-0.16641507 * t - 0.053735588) * t - 0.14687875) * t - 0.13274558) * t - 0.00022424405
    return a, e, q


@triton.jit
def gelu(z, DTYPE: tl.constexpr):
    if z.dtype == tl.float64:
        y = z * (0.5 + 0.5 * tl.erf(z * SQRT_HALF))
        return tl.where(z < -GELU_FLAT_DOUBLE, 0.0, y)
    else:
        a, e, q = lower_tail(z, DTYPE)
        return tl.maximum(z, 0.0) + e * (a * q)


@triton.jit
def gelu_derivative(z, DTYPE: tl.constexpr):
    if z.dtype == tl.float64:
        density = z * tl.exp(z * z * -0.5) * NORMAL_DENSITY
        density = tl.where(tl.abs(z) > GELU_FLAT_DOUBLE, 0.0, density)
        return 0.5 + 0.5 * tl.erf(z * SQRT_HALF) + density
    else:
        a, e, q = lower_tail(z, DTYPE)
        above_0 = e * (a * NORMAL_DENSITY + q)  # a phi(a) - Phi(-a)
        return tl.where(z < 0.0, -above_0, 1.0 + above_0)


@triton.jit
def activate(z, negative_slope, ACT: tl.constexpr, DTYPE: tl.constexpr):
    """y, which the caller rounds to DTYPE; nan stays nan, and 0 of 0 is 0."""
    if ACT is None:
        return z
    elif ACT == "relu":
        return tl.where(z <= 0.0, 0.0, z)
    elif ACT == "relu6":
        return tl.where(z <= 0.0, 0.0, tl.where(z >= 6.0, 6.0, z))
    elif ACT == "leaky_relu":
        return tl.where(z > 0.0, z, z * tl.full([], negative_slope, z.dtype))
    elif ACT == "silu":
        return times_sigmoid(z, z, DTYPE)
    elif ACT == "gelu":
        return gelu(z, DTYPE)
    elif ACT == "gelu_tanh":
        return times_sigmoid(z, twice_u(z), DTYPE)
    else:
        tl.static_assert(ACT == "hardswish")
        gate = tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, 6.0, z + 3.0))
        return z * gate * (1.0 / 6.0)


@triton.jit
def derivative(z, ACT: tl.constexpr, DTYPE: tl.constexpr):
    """act'(z) of an activation that is not one of LINES."""
    if ACT == "silu":
        if DTYPE.primitive_bitwidth == 16:
            gate = tl.sigmoid(z)
            return gate * (1.0 + z * (1.0 - gate))  # what 1 - gate loses near 1 is little beside it
        else:
            _, slope = gate_and_slope(z, ACT, DTYPE)
            return slope
    elif ACT == "gelu":
        return gelu_derivative(z, DTYPE)
    elif ACT == "gelu_tanh":
        gate, slope = sigmoid_and_slope(twice_u(z), DTYPE)
        square = tl.minimum(z * z, GELU_FLAT_DOUBLE * GELU_FLAT_DOUBLE)  # else slope 0 times infinity
        return gate + z * slope * (square * GELU_CUBIC * 3.0 + 1.0) * TWICE_SQRT_2_OVER_PI
    else:
        tl.static_assert(ACT == "hardswish")
        return tl.where(z <= -3.0, 0.0, tl.where(z < 3.0, z * (1.0 / 3.0) + 0.5, 1.0))


@triton.jit
def activation_backward(dy, z, negative_slope, ACT: tl.constexpr, DTYPE: tl.constexpr):
    """dz, which the caller rounds to DTYPE."""
    LINES_OF_SLOPE_1: tl.constexpr = ACT == "relu" or ACT == "relu6" or ACT == "leaky_relu"
    if ACT is None:
        return dy
    elif LINES_OF_SLOPE_1:
        return lines_backward(dy, is_steep(z, ACT), negative_slope, ACT)
    else:
        return dy * derivative(z, ACT, DTYPE)
