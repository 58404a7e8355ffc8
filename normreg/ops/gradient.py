"""The backward of every normalisation once more, as differentiable torch operations.

A kernel's gradient has no gradient of its own. Where one is wanted (`create_graph=True`, in which autograd
runs the backward with gradients enabled), the backward is this instead, of any order.
"""

import torch


def wants_gradient(*tensors):
    """Whether autograd would record an operation on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def statistics(x, dims, eps):
    """mean and rstd of x over dims, kept as dimensions of size 1."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = x.mean(dims, keepdim=True)
    return mean, ((x - mean).square().mean(dims, keepdim=True) + eps).rsqrt()


def normalization_backward(dy, x, weight, mean, rstd, normalized_dims, parameter_dims):
    """dx, dweight and dbias of y = (x - mean) rstd weight + bias.

    normalized_dims: the dimensions that mean and rstd were computed over; None where they are constants.
    parameter_dims: the dimensions that weight and bias, of which weight broadcasts with x, do not have.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    dy = dy.to(dtype)
    x_hat = (x.to(dtype) - mean) * rstd
    wdy = dy if weight is None else dy * weight
    dx = wdy
    if normalized_dims is not None:
        c1 = (x_hat * wdy).mean(normalized_dims, keepdim=True)
        c2 = wdy.mean(normalized_dims, keepdim=True)
        dx = wdy - x_hat * c1 - c2
    dx = (dx * rstd).to(x.dtype)
    if not parameter_dims:
        return dx, dy * x_hat, dy
    return dx, (dy * x_hat).sum(parameter_dims), dy.sum(parameter_dims)
