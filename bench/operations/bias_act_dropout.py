"""Bias, activation and dropout: between the two linear layers of a transformer's block."""

import copy

import torch
import torch.nn.functional as F

import normreg

from .case import DTYPES, Case, Operation, error_against_float64

NAME = "bias_act_dropout"
P = 0.1


class BiasActDropout(torch.nn.Module):
    """What torch has to offer."""

    def __init__(self, bias, act):
        super().__init__()
        self.bias, self.act = torch.nn.Parameter(bias), act

    def dropped(self, y):
        return F.dropout(y, P, self.training)

    def forward(self, x):
        return self.dropped(getattr(F, self.act)(x + self.bias))


class Fused(BiasActDropout):
    def forward(self, x):
        return normreg.functional.bias_act_dropout(x, self.bias, self.act, P, self.training)


def fuse(layer):
    """Makes a BiasActDropout normreg's."""
    layer.__class__ = Fused
    return layer


class Masked(BiasActDropout):
    def dropped(self, y):
        return y * self.scale


def layer(library, case, device=None, dtype=None):
    bias = torch.randn(case.shape[-1], device=device, dtype=dtype)
    made = BiasActDropout(bias, case.layer.split("+")[1]).train(case.training)
    return fuse(made) if library is normreg else made


def error(reference, layer, x, dy, y, gradients):
    """The largest relative error under the layer's own mask, or inf where that is no such mask."""
    keep = (y != 0) | (gradients[0] != 0)  # act(0) is 0
    zeros = 0.0 if layer.act != "relu" else (x + layer.bias <= 0).double().mean().item()
    kept = (1 - P) * (1 - zeros)
    if abs(keep.double().mean().item() - kept) > 6 * (P * (1 - P) / x.numel()) ** 0.5 + 2**-8:
        return float("inf")
    reference = copy.deepcopy(reference)
    reference.__class__, reference.scale = Masked, keep / (1 - P)
    return error_against_float64(reference, layer, x, dy, y, gradients)


OPERATION = Operation(
    name=NAME,
    layer=layer,
    passes={"forward": 2, "backward": 3, "forward+backward": 5},  # x, y; dy, x, dx; both
    masked_error=error,
    ledger=(Case(NAME, (640, 1024), layer="bias+gelu+dropout"),),
    static=tuple(
        Case(NAME, shape, dtype, layer=f"bias+{act}+dropout")
        for dtype in DTYPES.values()
        for shape, act in (((4096, 4096), "gelu"), ((4096, 3072), "silu"), ((4096, 1000), "relu"))
    ),
    instructions=(
        Case(NAME, (264, 4096), layer="bias+gelu+dropout"),
        Case(NAME, (352, 3072), layer="bias+silu+dropout"),
        Case(NAME, (1056, 1000), layer="bias+relu+dropout"),
    ),
    host=(Case(NAME, (8, 768), layer="bias+gelu+dropout"),),
    speed=tuple(
        Case(NAME, shape, layer=f"bias+{act}+dropout", origin="language")
        for shape in ((16384, 3072), (16384, 16384), (8192, 11008))
        for act in ("gelu", "silu")
    ),
)
