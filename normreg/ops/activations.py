"""Activations and their derivatives in torch's operators, named in `normreg.kernels.device.activations`."""

import numbers

import torch
import torch.nn.functional as F

from normreg.kernels.device.activations import NAMES

TORCHS = {
    None: lambda z, _: z,
    "relu": lambda z, _: F.relu(z),
    "relu6": lambda z, _: F.relu6(z),
    "leaky_relu": lambda z, negative_slope: F.leaky_relu(z, negative_slope),
    "silu": lambda z, _: F.silu(z),
    "gelu": lambda z, _: F.gelu(z),
    "gelu_tanh": lambda z, _: F.gelu(z, approximate="tanh"),
    "hardswish": lambda z, _: F.hardswish(z),
}
aten = torch.ops.aten
# dz of dy and z, in operators that torch differentiates
DZ = {
    None: lambda dy, z, _: dy,
    "relu": lambda dy, z, _: aten.threshold_backward(dy, z, 0),
    "relu6": lambda dy, z, _: aten.hardtanh_backward(dy, z, 0, 6),
    "leaky_relu": lambda dy, z, negative_slope: aten.leaky_relu_backward(dy, z, negative_slope, False),
    "silu": lambda dy, z, _: dy * z.sigmoid() * (1 + z * (-z).sigmoid()),
    "gelu": lambda dy, z, _: aten.gelu_backward(dy, z),
    "gelu_tanh": lambda dy, z, _: aten.gelu_backward(dy, z, approximate="tanh"),
    "hardswish": lambda dy, z, _: aten.hardswish_backward(dy, z),
}


def check_activation(act, negative_slope=0.01):
    if act not in TORCHS:
        raise ValueError(
            f"expected act to be None or one of {', '.join(NAMES)}, got {act!r}: "
            f"use {'silu, which is swish' if act == 'swish' else 'act=None and call the activation yourself'}"
        )
    if not isinstance(negative_slope, (numbers.Real, torch.Tensor)):
        raise TypeError(
            f"expected negative_slope to be a number, got {negative_slope!r}: it is leaky_relu's slope below "
            f"0, such as 0.01"
        )


def activation_in_torch(z, act, negative_slope):
    activation = TORCHS[act]
    return activation(z, negative_slope)


def is_steep(z, act):
    """Whether an element is on the line of slope 1 of one of LINES."""
    derivative = DZ[act]
    return derivative(torch.ones_like(z), z, 0.0) != 0


MODULES = {
    torch.nn.ReLU: "relu",
    torch.nn.ReLU6: "relu6",
    torch.nn.LeakyReLU: "leaky_relu",
    torch.nn.SiLU: "silu",
    torch.nn.GELU: "gelu",
    torch.nn.Hardswish: "hardswish",
}


def activation_of(module):
    """act and negative_slope of a module of exactly one of torch.nn's classes, or None."""
    act = MODULES.get(type(module))
    if act == "gelu" and module.approximate != "none":
        act = f"gelu_{module.approximate}"
    return act and (act, getattr(module, "negative_slope", 0.01))
