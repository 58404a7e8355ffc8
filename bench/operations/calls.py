"""How examples call functions; each takes the function first, of normreg or of torch, then its inputs."""

import torch
import torch.nn.functional as F

# {name that `act` takes: torch's function}; the slope of leaky_relu is not its default
ACTIVATIONS = {
    None: lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.3),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "hardswish": F.hardswish,
}


def as_they_are(f, *inputs, **options):
    return f(*inputs, **options)


def over_rows(f, x, *parameters, dims=1, **options):
    """A row is what the last dimensions hold."""
    return f(x, x.shape[x.dim() - dims :], *parameters, **options)


def over_planes(f, x, *parameters):
    return over_rows(f, x, *parameters, dims=2)


def running(x, weight=None):
    """Running mean and variance of the dtype of the parameters, exact in each."""
    like = dict(dtype=x.dtype if weight is None else weight.dtype, device=x.device)
    return [1 + torch.arange(x.shape[1], **like) % 7 / 4 for _ in range(2)]


def without_statistics(f, x, *parameters, **options):
    return f(x, None, None, *parameters, training=True, **options)


def with_statistics(training):
    return lambda f, x, weight=None, bias=None: f(x, *running(x, weight), weight, bias, training)


def followed_by(act, training=True, **options):
    def call(f, x, weight=None, bias=None, residual=None):
        return f(x, *running(x, weight), weight, bias, training, act=act, residual=residual, **options)

    return call


def by_row(x):
    """A scale for each index of the first dimension, exact in every dtype."""
    return torch.arange(1.0, x.shape[0] + 1, device=x.device).to(x.dtype) % 4 / 2
