"""GroupNorm with the activation that follows it: residual blocks of diffusion models."""

import torch
import torch.nn.functional as F

from . import group_norm
from .calls import ACTIVATIONS
from .case import each, in_float_dtypes
from .composed import NormAct
from .group_norm import groups_of, in_rows
from .operation import Function, Layer, Measured, Operation, Smoke

# Stable Diffusion's U-Net at 64 x 64 and its decoder, whose batch is often 1
UNET = "1x320x64x64, 2x1280x16x16, 16x320x64x64, 16x640x32x32, 16x1280x8x8"
DECODER = "1x512x128x128, 1x256x256x256, 1x128x512x512"
BOTH_FORMATS = "group_norm+silu {}", "group_norm+silu {} channels_last"


def group_norm_act(x, num_groups, weight=None, bias=None, eps=1e-5, *, act, negative_slope=0.3):
    assert negative_slope == 0.3, "ACTIVATIONS has no other"
    return ACTIVATIONS[act](F.group_norm(x, num_groups, weight, bias, eps))


def in_groups(groups, act="silu", **options):
    return lambda f, x, *parameters: f(x, groups, *parameters, act=act, **options)


def torch_layer(case, **options):
    norm, act = case.layer.split("+")
    return NormAct(torch.nn.GroupNorm(groups_of(norm), case.shape[1], **options), act)


OPERATION = Operation(
    name="group_norm_act",
    kernels="group_norm",
    over="channels",
    formulas={"group_norm_act": group_norm_act},
    functions={
        "group_norm_act": Function(in_groups(2), ((3, 4), (4,), (4,))),
        "group_norm_act of images": Function(in_groups(2, "gelu"), ((2, 4, 1, 3), (4,), (4,))),
        "group_norm_act without parameters": Function(in_groups(1, "hardswish"), ((3, 2, 2),)),
        "group_norm_act without bias": Function(
            in_groups(3, "leaky_relu", negative_slope=0.3), ((2, 3, 3), (3,))
        ),
        "group_norm_act of None": Function(in_groups(2, None), ((3, 4), (4,), (4,))),
    },
    layers={"GroupNormAct": Layer((2, 6), (6, 3, 5))},
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "4x64x8x8"),
        Smoke("bf16 fp32", "4x64x8x8", channels_last=True),
        Smoke("bf16 fp32 fp64", "2x32x64x64"),  # split
        Smoke("bf16 fp32 fp64", "2x32x64x64", channels_last=True),
    ),
    measured=Measured(
        torch_layer=torch_layer,
        fuse=NormAct.fuse,
        passes=group_norm.MEASURED.passes,
        small="group_norm+silu fp32 3x64x5x3",
        # the last has groups that are not held
        ledger=each("64x1280x8x8, 1x128x256x256", *BOTH_FORMATS),
        static=each("16x640x32x32, 16x1280x8x8, 16x512x8x8", *BOTH_FORMATS)
        + ", group_norm+gelu 16x64x64x64, group_norm+gelu 16x256x4x4 channels_last",
        instructions=each("16x1280x8x8, 4x320x32x32, 1x128x128x128", *BOTH_FORMATS),
        # not relu: next to its kink one result has the one slope, and another the other
        exactness=in_float_dtypes("GroupNorm(8)+silu 8x32x28x28")
        + ", GroupNorm(8)+silu fp32 8x32x28x28 channels_last"
        + ", GroupNorm(2)+silu fp32 1x32x128x64 channels_last",  # and not held
        together=lambda t, case: in_rows(t, groups_of(case.layer.split("+")[0])),
        host="group_norm+silu 8x64x4x4",
        speed={
            "U-Net": each(UNET, *BOTH_FORMATS),
            "decoder": each(DECODER, *BOTH_FORMATS),
            "float32": each(UNET, "group_norm+silu fp32 {}", "group_norm+silu fp32 {} channels_last"),
        },
    ),
)
