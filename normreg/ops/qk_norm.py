"""Norms of the heads of queries and keys. The formulas are in `normreg.kernels.qk_norm`."""

import math

import torch

from normreg.kernels import qk_norm as kernels
from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.heads import dense_heads_like
from normreg.ops import layer_norm
from normreg.ops.operation import Operation, Operator


def fake(q, k, out_dtype, centered, save_statistics):
    y = [dense_heads_like(x, out_dtype) for x in (q, k)]
    if not save_statistics:
        return *y, None, None
    return *y, *(layer_norm.fake_statistics(x, math.prod(x.shape[:-1]), centered) for x in (q, k))


def fake_backward(dk_y, q, k, parameter_dtype, wanted):
    found = []
    for number, want in enumerate(wanted):
        x = (q, k)[number % 2]
        if not want or (number % 2 and dk_y is None):
            found.append(None)
        elif number < 2:
            found.append(dense_heads_like(x, x.dtype))
        else:
            found.append(x.new_empty(x.shape[-1:], dtype=parameter_dtype))
    return tuple(found)


def across(x, interleaved):
    """(-b, a) of the halves (a, b) of each head, or of each pair of neighbours."""
    if interleaved:
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((-b, a), -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


def turned(x, cos, sin, interleaved, back=False):
    """x of which the first columns of each head, as many as cos has, are turned; of x's dtype.

    back: by the transpose, as the gradient of the result is.
    """
    if cos is None:
        return x
    first, rest = x.tensor_split((cos.shape[-1],), -1)
    other = -across(first * sin, interleaved) if back else across(first, interleaved) * sin
    first = (first * cos + other).to(x.dtype)
    return torch.cat((first, rest), -1) if rest.shape[-1] else first


def formula(dq_y, dk_y, q, k, q_weight, k_weight, cos, sin, eps, centered, interleaved, wanted):
    gradients = [(None,) * 3, (None,) * 3]
    for number, (dy, x, weight) in enumerate(((dq_y, q, q_weight), (dk_y, k, k_weight))):
        if dy is not None:
            of_x = wanted[number::2]
            dy = turned(dy.to(compute_dtype(x.dtype)), cos, sin, interleaved, back=True)
            gradients[number] = layer_norm.formula(dy, x, weight, x.shape[-1:], eps, of_x, centered)
    return tuple(gradient for of_both in zip(*gradients) for gradient in of_both)


qk_norm = Operation(
    "qk_norm",
    kernels.qk_norm_forward,
    fake,
    ("q_y", "k_y", "q_statistics", "k_statistics"),
    Operator(
        "qk_norm_backward",
        kernels.qk_norm_backward,
        fake_backward,
        ("dq", "dk", "dq_weight", "dk_weight", "dq_bias", "dk_bias"),
    ),
    formula,
    gradients=6,
    differentiable=2,
    returned=2,
    dtypes={"parameter_dtype": ("q_weight", "k_weight", "q_bias", "k_bias", "q")},
)
