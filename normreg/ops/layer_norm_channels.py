"""LayerNorm over channels. The formulas are in `normreg.kernels.layer_norm.channels`."""

import math

import torch

from normreg.kernels.layer_norm import channels as kernels
from normreg.ops import gradient, layer_norm
from normreg.ops.batch_norm import over_channels
from normreg.ops.operation import Operation, Operator


def fake(x, out_dtype, save_statistics, centered=True):
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    positions = x.shape[0] * math.prod(x.shape[2:])
    return y, layer_norm.fake_statistics(x, positions, centered) if save_statistics else None


def fake_backward(x, parameter_dtype, wanted):
    return gradient.fakes(x, x.shape[1:2], parameter_dtype, wanted)


def gradients_of(dy, x, weight, mean, rstd, wanted):
    """dx, dweight and dbias of positions whose statistics are given."""
    others, per_channel = over_channels(x)
    weight = None if weight is None else weight.view(per_channel)
    return gradient.normalization_backward(dy, x, weight, mean, rstd, (1,), others, wanted)


def formula(dy, x, weight, eps, wanted, centered=True):
    return gradients_of(dy, x, weight, *gradient.statistics(x, (1,), eps, centered), wanted)


def decomposed(x, weight, bias, eps, centered=True):
    _, per_channel = over_channels(x)
    weight, bias = (None if t is None else t.view(per_channel) for t in (weight, bias))
    y, mean, rstd = gradient.normalized(x, weight, bias, (1,), eps, centered)
    return y, gradient.packed(mean, rstd, -1)


def decomposed_backward(dy, x, weight, statistics, wanted):
    mean, rstd = gradient.unpacked(statistics, (x.shape[0], 1, *x.shape[2:]))
    return gradients_of(dy, x, weight, mean, rstd, wanted)


layer_norm_channels = Operation(
    "layer_norm_channels",
    kernels.layer_norm_channels_forward,
    fake,
    ("y", "statistics"),
    Operator(
        "layer_norm_channels_backward",
        kernels.layer_norm_channels_backward,
        fake_backward,
        ("dx", "dweight", "dbias"),
        decomposition=decomposed_backward,
    ),
    formula,
    gradients=3,
    dtypes={"parameter_dtype": ("weight", "bias", "x")},
    decomposition=decomposed,
)
