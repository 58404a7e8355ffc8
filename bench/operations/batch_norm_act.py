"""BatchNorm with the activation that follows it, and with a residual added in between: blocks of networks."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

import normreg

from . import batch_norm
from .case import DTYPES, Case, Operation

NAME = "batch_norm_act"

# the last word of a case's layer; with a residual where "add" stands before it
ACTIVATIONS = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu, "hardswish": F.hardswish}


class NormAct(torch.nn.Module):
    """What torch has to offer: BatchNorm, sum and activation."""

    def __init__(self, norm, act, residual):
        super().__init__()
        self.norm, self.act = norm, act
        self.residual = None if residual is None else torch.nn.Parameter(residual)

    def forward(self, x):
        z = self.norm(x)
        return ACTIVATIONS[self.act](z if self.residual is None else z + self.residual)


class FusedNormAct(NormAct):
    def forward(self, x):
        return self.norm(x, self.residual)


def fuse(layer):
    """Makes a NormAct normreg's."""
    layer.__class__, layer.norm.__class__ = FusedNormAct, normreg.BatchNormAct2d
    layer.norm.act, layer.norm.negative_slope = layer.act, 0.01
    return layer


def layer(library, case, device=None, dtype=None):
    act = case.layer.split("+")[-1]
    norm = torch.nn.BatchNorm2d(case.shape[1], device=device, dtype=dtype)
    residual = None
    if "+add+" in case.layer:
        residual = case.like_input(torch.randn, device, dtype)
    made = NormAct(norm, act, residual).train(case.training)
    return fuse(made) if library is normreg else made


@dataclass(frozen=True)
class WithResidual(Operation):
    """Of which some cases move a residual as well."""

    residual: dict = field(default_factory=dict)  # direction -> how many tensors more

    def least_bytes(self, case, direction):
        added = self.residual[direction] if "+add+" in case.layer else 0
        return (self.passes[direction] + added) * case.bytes


RESNET_50 = ((64, 64, 112, 112), (64, 64, 56, 56), (64, 256, 56, 56), (64, 512, 28, 28), (64, 2048, 7, 7))
EFFICIENTNET_B0 = ((64, 96, 112, 112), (64, 240, 28, 28), (64, 1152, 7, 7))
SMALL, LARGE = (32, 420, 7, 7), (4, 40, 64, 64)

OPERATION = WithResidual(
    name=NAME,
    layer=layer,
    passes=batch_norm.OPERATION.passes,
    # read; written as its gradient; both; read
    residual={"forward": 1, "backward": 1, "forward+backward": 2, "evaluation": 1},
    ledger=(
        Case(NAME, SMALL, layer="batch_norm+relu"),
        Case(NAME, SMALL, layer="batch_norm+add+relu"),
        Case(NAME, LARGE, channels_last=True, layer="batch_norm+relu"),
        Case(NAME, LARGE, channels_last=True, layer="batch_norm+add+relu"),
        Case(NAME, LARGE, channels_last=True, layer="batch_norm+add+silu"),
        Case(NAME, LARGE, training=False, layer="batch_norm+add+relu"),
    ),
    static=tuple(
        Case(NAME, shape, dtype, channels_last, training, act)
        for dtype in DTYPES.values()
        for shape, channels_last, training, act in (
            ((32, 64, 56, 56), False, True, "batch_norm+add+relu"),
            ((32, 64, 56, 56), True, True, "batch_norm+add+relu"),
            ((32, 64, 56, 56), False, True, "batch_norm+gelu"),
            ((32, 64, 56, 56), True, True, "batch_norm+add+gelu"),
            ((32, 64, 56, 56), True, False, "batch_norm+add+relu"),
            ((4, 512, 32, 64), False, True, "batch_norm+add+silu"),
            ((16, 512, 32, 32), False, True, "batch_norm+add+relu"),
            ((16, 512, 32, 32), False, True, "batch_norm+gelu"),
            ((32, 512, 7, 8), False, True, "batch_norm+add+relu"),
            ((64, 512, 1, 1), False, True, "batch_norm+add+relu"),
            ((64, 512, 1, 1), False, True, "batch_norm+add+gelu"),
            ((128, 512, 1, 1), False, True, "batch_norm+add+gelu"),
        )
    ),
    instructions=(
        Case(NAME, (8, 64, 56, 56), layer="batch_norm+add+relu"),
        Case(NAME, (8, 64, 56, 56), channels_last=True, layer="batch_norm+add+relu"),
        Case(NAME, (8, 64, 56, 56), layer="batch_norm+gelu"),
        Case(NAME, (8, 64, 56, 56), channels_last=True, training=False, layer="batch_norm+add+relu"),
        Case(NAME, (16, 64, 32, 32), layer="batch_norm+add+silu"),
        Case(NAME, (32, 512, 7, 8), layer="batch_norm+add+relu"),
    ),
    host=(
        Case(NAME, (8, 64, 4, 4), layer="batch_norm+relu"),
        Case(NAME, (8, 64, 4, 4), layer="batch_norm+add+relu"),
    ),
    speed=tuple(
        Case(NAME, shape, dtype, channels_last, layer=act, origin=origin)
        for dtype in (torch.bfloat16, torch.float32)
        for origin, act, shapes in (
            ("ResNet-50", "batch_norm+relu", RESNET_50),
            ("ResNet-50", "batch_norm+add+relu", RESNET_50[2:]),
            ("EfficientNet-B0", "batch_norm+silu", EFFICIENTNET_B0),
            ("MobileNetV3", "batch_norm+hardswish", EFFICIENTNET_B0[1:2]),
        )
        for shape in shapes
        for channels_last in (True, False)
    ),
)
