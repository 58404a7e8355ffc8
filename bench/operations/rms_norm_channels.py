"""RMSNorm over the channels of feature maps: MobileNetV5's, of Gemma 3n, and the shapes of LayerNorm2d."""

from dataclasses import replace

import torch
import torch.nn.functional as F

import normreg

from . import layer_norm_channels
from .calls import as_they_are
from .case import in_float_dtypes
from .operation import Function, Layer, Operation, Smoke


def rms_norm_channels(x, weight=None, eps=None):
    return F.rms_norm(x.movedim(1, -1), x.shape[1:2], weight, eps).movedim(-1, 1)


class PermutingRMSNorm2d(torch.nn.RMSNorm):
    """timm's RmsNorm2d, what torch has to offer."""

    def forward(self, x):
        return rms_norm_channels(x, self.weight, self.eps)


def fuse(layer):
    layer.__class__ = normreg.RMSNorm2d
    return layer


OPERATION = Operation(
    name="rms_norm_channels",
    kernels="layer_norm",
    over="channels",
    formulas={"rms_norm_channels": rms_norm_channels},
    functions={
        "rms_norm_channels": Function(as_they_are, ((2, 3, 2, 2), (3,))),
        "rms_norm_channels without weight": Function(as_they_are, ((2, 4, 3),)),
    },
    layers={
        "RMSNorm2d": Layer((4,), (4, 3, 2)),
        "RMSNorm2d without weight": Layer((4, 1e-5, False), (4, 2, 3)),
    },
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "8x96x7x9"),
        Smoke("bf16", "2x3000x3x3"),  # too many to be held
    ),
    # LayerNorm's kernels are not looked at twice at each of its sizes
    measured=replace(
        layer_norm_channels.OPERATION.measured,
        torch_layer=lambda case, **options: PermutingRMSNorm2d(case.shape[1], eps=1e-6, **options),
        fuse=fuse,
        static="32x96x56x56, 32x768x7x8, 2x3000x16x16",
        instructions="4x96x56x56, 16x768x7x8",
        exactness=in_float_dtypes("4x96x14x14"),
        speed={"MobileNetV5": "16x640x32x32, 16x640x32x32 channels_last, 16x1280x16x16, 64x96x56x56"},
    ),
)
