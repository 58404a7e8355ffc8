"""RMS normalisation over the last `cols` elements of each row.

    rstd = 1 / sqrt(sum(x^2) / cols + eps)
    x_hat = x rstd                           y = x_hat weight

    wdy = weight dy                          dweight = sum over rows of dy x_hat
    c1 = sum(x_hat wdy) / cols               dx = (wdy - x_hat c1) rstd

This is LayerNorm of rows that are not centred, without a bias, and the kernels are those of `layer_norm`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from normreg.kernels.layer_norm import layer_norm_backward, layer_norm_forward


def rms_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    normalized_shape: Sequence[int],
    eps: float,
    out_dtype: torch.dtype,
    save_statistics: bool,
) -> tuple[Tensor, Tensor | None]:
    """y in `out_dtype`, and rstd of each row, [rows, 1], or None where it is not to be saved."""
    return layer_norm_forward(
        x, weight, None, normalized_shape, eps, out_dtype, save_statistics, centered=False
    )


def rms_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    normalized_shape: Sequence[int],
    parameter_dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The wanted ones of dx and dweight, None for the others."""
    dx, dweight, _ = layer_norm_backward(
        dy, x, weight, statistics, normalized_shape, parameter_dtype, (*wanted, False), centered=False
    )
    return dx, dweight
