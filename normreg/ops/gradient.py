"""The normalisations in torch operations: forward, and backward so that it can be differentiated again."""

import torch

from normreg.kernels.dtypes import compute_dtype


def fakes(x, parameter_shape, parameter_dtype, wanted):
    """Empty tensors for the wanted ones of dx, contiguous, dweight and dbias; None for the others."""
    like = ((x.shape, x.dtype), (parameter_shape, parameter_dtype), (parameter_shape, parameter_dtype))
    return tuple(
        x.new_empty(shape, dtype=dtype) if want else None for want, (shape, dtype) in zip(wanted, like)
    )


def statistics(x, dims, eps, centered=True):
    """mean, None where x is not centred, and rstd of x over dims, kept as dimensions of size 1."""
    x = x.to(compute_dtype(x.dtype))
    mean = x.mean(dims, keepdim=True) if centered else None
    return mean, (deviation_of(x, mean).square().mean(dims, keepdim=True) + eps).rsqrt()


def moments(x, dims, centered=True):
    """x - mean, both parts of the mean, None where x is not centred, and var, with dims of size 1."""
    deviation, mean = x.to(compute_dtype(x.dtype)), None
    if centered:
        high = deviation.mean(dims, keepdim=True)
        deviation = deviation - high
        mean = high, deviation.mean(dims, keepdim=True)
        deviation = deviation - mean[1]
    return deviation, mean, deviation.square().mean(dims, keepdim=True)


def normalized(x, weight, bias, dims, eps, centered=True):
    """y = x_hat weight + bias in the dtype of arithmetic, both parts of the mean, and rstd."""
    deviation, mean, var = moments(x, dims, centered)
    rstd = (var + eps).rsqrt()
    return affine(deviation * rstd, weight, bias), mean, rstd


def affine(x_hat, weight, bias):
    """x_hat weight + bias, in x_hat's dtype."""
    y = x_hat if weight is None else x_hat * weight.to(x_hat.dtype)
    return y if bias is None else y + bias.to(y.dtype)


def deviation_of(x, mean):
    """x - mean; the mean is None, a tensor, or several whose sum it is."""
    for part in () if mean is None else mean if isinstance(mean, tuple) else (mean,):
        x = x - part
    return x


def packed(mean, spread, shape):
    """What kernels save of rows: both parts of the mean, if any, and rstd or var, beside each other."""
    return torch.stack([t.reshape(shape) for t in (*(mean or ()), spread)], -1)


def unpacked(statistics, shape):
    """The mean, as `deviation_of` takes it, and rstd or var, of what was saved."""
    *mean, spread = (t.reshape(shape) for t in statistics.unbind(-1))
    return tuple(mean) or None, spread


def normalization_backward(dy, x, weight, mean, rstd, normalized_dims, parameter_dims, wanted):
    """The wanted ones of dx, dweight and dbias of y = (x - mean) rstd weight + bias, None for the others.

    mean: as `deviation_of` takes it, None where x is not centred.
    normalized_dims: the dimensions that mean and rstd were computed over; None where they are constants.
    parameter_dims: the dimensions that weight and bias, of which weight broadcasts with x, do not have.
    """
    want_dx, want_dweight, want_dbias = wanted
    dtype = compute_dtype(x.dtype)
    dy, rstd = dy.to(dtype), rstd.to(dtype)
    x_hat = deviation_of(x.to(dtype), mean) * rstd
    dx = dweight = dbias = None
    if want_dx:
        dx = wdy = dy if weight is None else dy * weight
        if normalized_dims is not None:
            c1 = (x_hat * wdy).mean(normalized_dims, keepdim=True)
            c2 = 0.0 if mean is None else wdy.mean(normalized_dims, keepdim=True)
            dx = wdy - x_hat * c1 - c2
        dx = (dx * rstd).to(x.dtype)
    if want_dweight:
        dweight = sum_over(dy * x_hat, parameter_dims)
    if want_dbias:
        dbias = sum_over(dy, parameter_dims)
    return dx, dweight, dbias


def sum_over(x, dims):
    return x.sum(dims) if dims else x  # torch sums over all dimensions where it is given none
