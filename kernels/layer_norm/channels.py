"""Layer and RMS normalisation over the channels of each position of a channels-first tensor (N, C, *).

    y[n, c, s] = (x[n, c, s] - mean[n, s]) rstd[n, s] weight[c] + bias[c]

with mean and rstd over c, and without mean and bias in RMSNorm. So these are norms of rows whose elements are
a sample's positions apart, and the kernels are those of `layer_norm`: a tile is neighbouring positions, which
are contiguous, and their channels. Where the channels are contiguous (channels_last), positions are ordinary
rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from normreg.kernels.layer_norm import layer_norm_backward, layer_norm_forward


def layer_norm_channels_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
    save_statistics: bool,
) -> tuple[Tensor, Tensor | None]:
    """y in `out_dtype`, and statistics of each position, [positions, 3], or None where not to be saved."""
    return layer_norm_forward(
        x, weight, bias, x.shape[1:2], eps, out_dtype, save_statistics, channels_first=True
    )


def layer_norm_channels_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    parameter_dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The wanted ones of dx, dweight and dbias, None for the others."""
    return layer_norm_backward(
        dy, x, weight, statistics, x.shape[1:2], parameter_dtype, wanted, channels_first=True
    )


def rms_norm_channels_forward(
    x: Tensor, weight: Tensor | None, eps: float, out_dtype: torch.dtype, save_statistics: bool
) -> tuple[Tensor, Tensor | None]:
    """y in `out_dtype`, and rstd of each position, [positions, 1], or None where it is not to be saved."""
    options = dict(centered=False, channels_first=True)
    return layer_norm_forward(x, weight, None, x.shape[1:2], eps, out_dtype, save_statistics, **options)


def rms_norm_channels_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    parameter_dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The wanted ones of dx and dweight, None for the others."""
    options = dict(centered=False, channels_first=True)
    dx, dweight, _ = layer_norm_backward(
        dy, x, weight, statistics, x.shape[1:2], parameter_dtype, (*wanted, False), **options
    )
    return dx, dweight
