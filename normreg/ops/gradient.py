"""Backward passes of the normalisations in torch operations, so that they can be differentiated again."""

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
    deviation = x - mean if centered else x
    return mean, (deviation.square().mean(dims, keepdim=True) + eps).rsqrt()


def normalization_backward(dy, x, weight, mean, rstd, normalized_dims, parameter_dims, wanted):
    """The wanted ones of dx, dweight and dbias of y = (x - mean) rstd weight + bias, None for the others.

    mean: None where x is not centred.
    normalized_dims: the dimensions that mean and rstd were computed over; None where they are constants.
    parameter_dims: the dimensions that weight and bias, of which weight broadcasts with x, do not have.
    """
    want_dx, want_dweight, want_dbias = wanted
    dtype = compute_dtype(x.dtype)
    dy, rstd = dy.to(dtype), rstd.to(dtype)
    deviation = x.to(dtype) if mean is None else x.to(dtype) - mean.to(dtype)
    x_hat = deviation * rstd
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
