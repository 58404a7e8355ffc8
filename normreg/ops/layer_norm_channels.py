"""LayerNorm over channels. The formulas are in `normreg.kernels.layer_norm.channels`."""

import torch

from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.layer_norm import channels as kernels
from normreg.ops import gradient, group_norm
from normreg.ops.batch_norm import over_channels
from normreg.ops.operation import Operation, Operator


def fake(x, out_dtype, save_statistics):
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    if not save_statistics:
        return y, None, None
    positions = x.shape[0] * x.shape[2:].numel()
    mean, rstd = (x.new_empty(positions, dtype=compute_dtype(x.dtype)) for _ in range(2))
    return y, mean, rstd


def formula(dy, x, weight, eps, wanted):
    others, per_channel = over_channels(x)
    weight = None if weight is None else weight.view(per_channel)
    mean, rstd = gradient.statistics(x, (1,), eps)
    return gradient.normalization_backward(dy, x, weight, mean, rstd, (1,), others, wanted)


layer_norm_channels = Operation(
    "layer_norm_channels",
    kernels.layer_norm_channels_forward,
    fake,
    ("y", "mean", "rstd"),
    Operator(
        "layer_norm_channels_backward",
        kernels.layer_norm_channels_backward,
        group_norm.fake_backward,
        ("dx", "dweight", "dbias"),
    ),
    formula,
    gradients=3,
    dtypes={"parameter_dtype": ("weight", "bias", "x")},
)
