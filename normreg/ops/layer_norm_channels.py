"""LayerNorm over channels. The formulas are in `normreg.kernels.layer_norm.channels`."""

import torch

from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.layer_norm import channels as kernels
from normreg.ops import gradient
from normreg.ops.operation import Operation, Operator


def fake(x, out_dtype, save_statistics):
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    if not save_statistics:
        return y, None, None
    positions = x.shape[0] * x.shape[2:].numel()
    mean, rstd = (x.new_empty(positions, dtype=compute_dtype(x.dtype)) for _ in range(2))
    return y, mean, rstd


def fake_backward(x, parameter_dtype, wanted):
    return gradient.fakes(x, x.shape[1:2], parameter_dtype, wanted)


def formula(dy, x, weight, eps, wanted):
    if weight is not None:
        weight = weight.view(-1, *(1,) * (x.dim() - 2))
    mean, rstd = gradient.statistics(x, (1,), eps)
    others = (0, *range(2, x.dim()))
    return gradient.normalization_backward(dy, x, weight, mean, rstd, (1,), others, wanted)


layer_norm_channels = Operation(
    "layer_norm_channels",
    kernels.layer_norm_channels_forward,
    fake,
    ("y", "mean", "rstd"),
    Operator(
        "layer_norm_channels_backward",
        kernels.layer_norm_channels_backward,
        fake_backward,
        ("dx", "dweight", "dbias"),
    ),
    formula,
    gradients=3,
    dtypes={"parameter_dtype": ("weight", "bias", "x")},
)
