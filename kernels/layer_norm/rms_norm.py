"""RMS normalisation over the last `cols` elements of each row.

    rstd = 1 / sqrt(sum(x^2) / cols + eps)
    x_hat = x rstd                           y = x_hat weight

    wdy = weight dy                          dweight = sum over rows of dy x_hat
    c1 = sum(x_hat wdy) / cols               dx = (wdy - x_hat c1) rstd

This is LayerNorm of rows that are not centred, without a bias, and the kernels are those of `layer_norm`.
"""

from normreg.kernels.layer_norm import layer_norm_backward, layer_norm_forward


def rms_norm_forward(x, weight, cols, eps, out_dtype, save_rstd):
    """y in `out_dtype`, and rstd of each row, or None where it is not to be saved."""
    y, _, rstd = layer_norm_forward(x, weight, None, cols, eps, out_dtype, save_rstd, centered=False)
    return y, rstd


def rms_norm_backward(dy, x, weight, rstd, cols, parameter_dtype, wanted):
    """The wanted ones of dx and dweight (flat), None for the others."""
    dx, dweight, _ = layer_norm_backward(dy, x, weight, None, rstd, cols, parameter_dtype, (*wanted, False))
    return dx, dweight
