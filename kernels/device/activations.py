"""Device code for activations: y = act(z) and dz = dy act'(z), as torch.nn.functional computes them.

    relu        max(z, 0)                    gelu         z Phi(z), Phi the normal distribution
    relu6       min(max(z, 0), 6)            gelu_tanh    z sigmoid(2 u), u = sqrt(2 / pi) (z + 0.044715 z^3)
    leaky_relu  z, or slope z where z < 0    silu         z sigmoid(z)
                                             hardswish    z min(max(z + 3, 0), 6) / 6

Published networks put these behind BatchNorm. The first three (LINES) consist of straight lines, one of them
of slope 1: whether an element is on that line is one bit (`is_steep`), which is all that the gradient needs.
"""

import triton
import triton.language as tl

LINES = ("relu", "relu6", "leaky_relu")
NAMES = (*LINES, "silu", "gelu", "gelu_tanh", "hardswish")

SQRT_HALF = tl.constexpr(0.5**0.5)
NORMAL_DENSITY = tl.constexpr(0.3989422804014327)  # at 0: 1 / sqrt(2 pi)
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
def sigmoid_and_slope(u):
    """sigmoid(u) and sigmoid'(u), without cancellation."""
    e = tl.exp(-tl.abs(u))
    gate = 1.0 / (1.0 + e)
    return tl.where(u >= 0.0, gate, e * gate), e * gate * gate


@triton.jit
def twice_u(z):
    """2 u, for gelu_tanh."""
    return (z + z * z * z * GELU_CUBIC) * TWICE_SQRT_2_OVER_PI


@triton.jit
def activate(z, negative_slope, ACT: tl.constexpr):
    """y; nan stays nan."""
    if ACT is None:
        return z
    elif ACT == "relu":
        return tl.where(z <= 0.0, 0.0, z)
    elif ACT == "relu6":
        return tl.where(z <= 0.0, 0.0, tl.where(z >= 6.0, 6.0, z))
    elif ACT == "leaky_relu":
        return tl.where(z > 0.0, z, z * tl.full([], negative_slope, z.dtype))
    elif ACT == "silu":
        return z * tl.sigmoid(z)
    elif ACT == "gelu":
        return z * (0.5 + 0.5 * tl.erf(z * SQRT_HALF))
    elif ACT == "gelu_tanh":
        return z * tl.sigmoid(twice_u(z))
    else:
        tl.static_assert(ACT == "hardswish")
        gate = tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, 6.0, z + 3.0))
        return z * gate / 6.0


@triton.jit
def derivative(z, ACT: tl.constexpr):
    """act'(z) of an activation that is not one of LINES."""
    if ACT == "silu":
        gate, slope = sigmoid_and_slope(z)
        return gate + z * slope
    elif ACT == "gelu":
        return 0.5 + 0.5 * tl.erf(z * SQRT_HALF) + z * tl.exp(z * z * -0.5) * NORMAL_DENSITY
    elif ACT == "gelu_tanh":
        gate, slope = sigmoid_and_slope(twice_u(z))
        return gate + z * slope * (z * z * GELU_CUBIC * 3.0 + 1.0) * TWICE_SQRT_2_OVER_PI
    else:
        tl.static_assert(ACT == "hardswish")
        return tl.where(z <= -3.0, 0.0, tl.where(z < 3.0, z / 3.0 + 0.5, 1.0))


@triton.jit
def activation_backward(dy, z, negative_slope, ACT: tl.constexpr):
    """dz"""
    LINES_OF_SLOPE_1: tl.constexpr = ACT == "relu" or ACT == "relu6" or ACT == "leaky_relu"
    if ACT is None:
        return dy
    elif LINES_OF_SLOPE_1:
        return lines_backward(dy, is_steep(z, ACT), negative_slope, ACT)
    else:
        return dy * derivative(z, ACT)
