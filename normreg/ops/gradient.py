"""The backward of every normalisation once more, as differentiable torch operations.

A kernel's gradient has no gradient of its own, and no kernel takes a batch of incoming gradients. Where one
is wanted (`create_graph=True`, in which autograd runs the backward with gradients enabled), or the other
given (`is_grads_batched=True`), the backward is this instead, of any order.
"""

import torch


def wants_gradient(*tensors):
    """Whether autograd would record an operation on these tensors."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def is_batched(dy):
    """Whether dy is a batch of incoming gradients, of either vmap."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.is_legacy_batchedtensor(dy) or torch._C._are_functorch_transforms_active()


def wants_formula(dy):
    """Whether the backward of dy has to be differentiable torch operations."""
    return torch.is_grad_enabled() or is_batched(dy)


def save_for_backward(ctx, x, weight, bias, *statistics):
    """What the backward of a normalisation needs."""
    parameter = bias if weight is None else weight
    ctx.parameter_dtype = x.dtype if parameter is None else parameter.dtype
    ctx.save_for_backward(x, weight, *statistics)


def statistics(x, dims, eps, centered=True):
    """mean, None where x is not centred, and rstd of x over dims, kept as dimensions of size 1."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
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
    dtype = torch.promote_types(x.dtype, torch.float32)
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
