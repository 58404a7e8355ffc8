"""Norms of the heads of queries and keys. The formulas are in `normreg.kernels.qk_norm`."""

import math

import torch

from normreg.kernels import qk_norm as kernels
from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.heads import dense_heads_like
from normreg.ops import gradient, layer_norm
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
    statistics = [gradient.statistics(x, (-1,), eps, centered) for x in (q, k)]
    of_both = (dq_y, q, q_weight), (dk_y, k, k_weight)
    return gradients_of(of_both, statistics, cos, sin, interleaved, wanted)


def gradients_of(of_both, statistics, cos, sin, interleaved, wanted):
    """dq, dk, dq_weight ..., of statistics that are given."""
    gradients = [(None,) * 3, (None,) * 3]
    for number, ((dy, x, weight), of_rows) in enumerate(zip(of_both, statistics)):
        if dy is not None:
            dy = turned(dy.to(compute_dtype(x.dtype)), cos, sin, interleaved, back=True)
            of_x = x, weight, *of_rows, x.shape[-1:], wanted[number::2]
            gradients[number] = layer_norm.gradients_of(dy, *of_x)
    return tuple(gradient for of_both in zip(*gradients) for gradient in of_both)


def order_of(x):
    """The dimensions of x as its rows are numbered: those of `dense_heads_like`, from the outermost one."""
    strides = dense_heads_like(x, x.dtype).stride()
    return sorted(range(x.dim() - 1), key=lambda d: -strides[d])


def decomposed(q, k, q_weight, k_weight, q_bias, k_bias, cos, sin, eps, centered, interleaved):
    results, statistics = [], []
    for x, weight, bias in ((q, q_weight, q_bias), (k, k_weight, k_bias)):
        y, mean, rstd = gradient.normalized(x, weight, bias, (-1,), eps, centered)
        results.append(turned(y, cos, sin, interleaved))
        of_rows = gradient.packed(mean, rstd, x.shape[:-1])
        statistics.append(of_rows.permute(*order_of(x), -1).flatten(0, -2))
    return *results, *statistics


def saved(statistics, x):
    """mean and rstd of x's rows, from what was saved of them."""
    order = order_of(x)
    of_rows = statistics.view(*(x.shape[d] for d in order), -1)
    of_rows = of_rows.permute(*(order.index(d) for d in range(x.dim() - 1)), -1)
    return gradient.unpacked(of_rows, (*x.shape[:-1], 1))


def decomposed_backward(
    dq_y,
    dk_y,
    q,
    k,
    q_weight,
    k_weight,
    cos,
    sin,
    q_statistics,
    k_statistics,
    interleaved,
    wanted,
):
    statistics = saved(q_statistics, q), saved(k_statistics, k)
    of_both = (dq_y, q, q_weight), (dk_y, k, k_weight)
    return gradients_of(of_both, statistics, cos, sin, interleaved, wanted)


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
        decomposition=decomposed_backward,
    ),
    formula,
    gradients=6,
    differentiable=2,
    returned=2,
    dtypes={"parameter_dtype": ("q_weight", "k_weight", "q_bias", "k_bias", "q")},
    decomposition=decomposed,
)
