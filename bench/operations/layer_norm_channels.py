"""LayerNorm over the channels of feature maps: ConvNeXt's between its stages, and others."""

import torch
import torch.nn.functional as F

import normreg

from . import layer_norm
from .calls import as_they_are
from .case import each, in_float_dtypes
from .operation import Function, Layer, Measured, Operation, Smoke

CONVNEXT = "64x96x56x56, 64x192x28x28, 64x384x14x14, 64x768x7x7"
AWKWARD = "1x96x56x56, 2x16x512x512, 4x2000x16x16, 33x65x31x29"


def layer_norm_channels(x, weight=None, bias=None, eps=1e-6):
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2], weight, bias, eps).movedim(-1, 1)


class PermutingLayerNorm2d(torch.nn.LayerNorm):
    """timm's LayerNorm2d, what torch has to offer."""

    def forward(self, x):
        return layer_norm_channels(x, self.weight, self.bias, self.eps)


def fuse(layer):
    layer.__class__ = normreg.LayerNorm2d
    return layer


OPERATION = Operation(
    name="layer_norm_channels",
    kernels="layer_norm",
    over="channels",
    formulas={"layer_norm_channels": layer_norm_channels},
    functions={
        "layer_norm_channels": Function(as_they_are, ((2, 3, 2, 2), (3,), (3,))),
        "layer_norm_channels without parameters": Function(as_they_are, ((2, 4, 3),)),
    },
    layers={
        "LayerNorm1d": Layer((4,), (4, 3)),
        "LayerNorm2d": Layer((4,), (4, 3, 2)),
        "LayerNorm3d": Layer((4,), (4, 2, 1, 3)),
        "LayerNorm3d without parameters": Layer((4,), (4, 2, 1, 3), dict(affine=False)),
    },
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "8x96x7x9"),
        Smoke("bf16", "2x3000x3x3"),  # too many to be held
    ),
    measured=Measured(
        torch_layer=lambda case, **options: PermutingLayerNorm2d(case.shape[1], eps=1e-6, **options),
        fuse=fuse,
        passes=layer_norm.MEASURED.passes,
        small="fp32 3x6x5x4",
        ledger="32x96x56x56, 32x96x56x56 channels_last",
        static="32x96x56x56, 32x768x7x8, 2x3000x16x16",
        instructions="4x96x56x56, 4x96x56x56 channels_last, 16x768x7x8, 1x3000x16x16",
        exactness=in_float_dtypes("4x96x14x14") + ", fp32 4x96x14x14 channels_last",
        together=lambda t, case: t.movedim(1, -1).flatten(0, -2),
        host="8x64x4x4",
        speed={
            "ConvNeXt-T": each(CONVNEXT, "{}", "{} channels_last"),
            "small or awkward": each(AWKWARD, "{}", "{} channels_last"),
            "float32": each(f"{CONVNEXT}, {AWKWARD}", "fp32 {}", "fp32 {} channels_last"),
        },
    ),
)
