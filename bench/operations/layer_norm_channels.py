"""LayerNorm over the channels of feature maps: ConvNeXt's between its stages, and others."""

import torch
import torch.nn.functional as F

import normreg

from . import layer_norm
from .case import DTYPES, Case, Operation

NAME = "layer_norm_channels"

CONVNEXT = ((64, 96, 56, 56), (64, 192, 28, 28), (64, 384, 14, 14), (64, 768, 7, 7))
AWKWARD = ((1, 96, 56, 56), (2, 16, 512, 512), (4, 2000, 16, 16), (33, 65, 31, 29))


class PermutingLayerNorm2d(torch.nn.LayerNorm):
    """timm's LayerNorm2d, what torch has to offer."""

    def __init__(self, num_channels, **options):
        super().__init__(num_channels, eps=1e-6, **options)

    def forward(self, x):
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


def layer(library, case, **options):
    cls = normreg.LayerNorm2d if library is normreg else PermutingLayerNorm2d
    return cls(case.shape[1], **options).train(case.training)


OPERATION = Operation(
    name=NAME,
    layer=layer,
    passes=layer_norm.OPERATION.passes,
    ledger=(Case(NAME, (4, 40, 64, 64)), Case(NAME, (4, 40, 64, 64), channels_last=True)),
    static=tuple(
        Case(NAME, shape, dtype)
        for dtype in DTYPES.values()
        for shape in ((32, 96, 56, 56), (32, 768, 7, 8), (2, 3000, 16, 16))
    ),
    instructions=(
        Case(NAME, (4, 96, 56, 56)),
        Case(NAME, (4, 96, 56, 56), channels_last=True),
        Case(NAME, (16, 768, 7, 8)),
        Case(NAME, (1, 3000, 16, 16)),
    ),
    host=(Case(NAME, (8, 64, 4, 4)),),
    speed=tuple(
        Case(NAME, shape, dtype, channels_last, origin=origin)
        for dtype in (torch.bfloat16, torch.float32)
        for origin, shapes in (("ConvNeXt-T", CONVNEXT), ("small or awkward", AWKWARD))
        for shape in shapes
        for channels_last in (False, True)
    ),
)
