"""GroupNorm: feature maps of diffusion models and detectors, and the groups that are hard to spread."""

import torch

from .case import each, in_float_dtypes
from .operation import Function, Layer, Measured, Operation, Smoke

OTHER_DTYPES = "16x640x32x32, 32x256x56x56, 1x128x512x512"


def in_groups(number):
    return lambda f, x, *parameters, groups=number: f(x, groups, *parameters)


def groups_of(layer):
    """The 8 of "GroupNorm(8)", else 32."""
    return int(layer.removeprefix("GroupNorm(").removesuffix(")")) if layer.endswith(")") else 32


def in_rows(t, groups):
    """What is normalised together, a row each."""
    return t.reshape(t.shape[0] * groups, -1)


MEASURED = Measured(
    torch_layer=lambda case, **options: torch.nn.GroupNorm(groups_of(case.layer), case.shape[1], **options),
    # x, y; dy, x, dx; both; x, y
    passes={"forward": 2, "backward": 3, "forward+backward": 5, "evaluation": 2},
    small="fp32 3x64x5x3",
    # the first has 5 channels a group, the last groups that are not held
    ledger="64x160x32x32, 128x64x32x32, 64x1024x8x16, 32768x256, 16x32x160x128",
    static="16x640x32x32, 16x320x64x64, 16x1280x8x8, 256x512, 16x128x64x64, 16x64x64x64, 16x128x4x4",
    # the last has groups that are not held
    instructions="4x320x32x32, 4x64x64x64, 2048x512, 512x128x4x4, 1x128x128x128",
    # the second has groups that are not held
    exactness=in_float_dtypes("GroupNorm(8) 8x32x28x28") + ", GroupNorm(2) fp32 1x32x128x64",
    together=lambda t, case: in_rows(t, groups_of(case.layer)),
    host="8x64x4x4",
    speed={
        # Stable Diffusion: its U-Net at 64 x 64, and its decoder
        "diffusion": "16x320x64x64, 4x320x64x64, 16x640x32x32, 16x1280x16x16, 16x1280x8x8, 4x512x64x64, "
        "4x256x256x256, 1x128x512x512",
        # ResNet-50 with GroupNorm
        "detection": "32x64x112x112, 32x256x56x56, 32x512x28x28, 32x1024x14x14, 32x2048x7x7",
        "small or awkward": "1x32x33x35, 4096x1024, 65536x128, 64x96x16384, 2x32x64x128x128",
        "float32": each(OTHER_DTYPES, "fp32 {}"),
        "float16": each(OTHER_DTYPES, "fp16 {}"),
    },
)

OPERATION = Operation(
    name="group_norm",
    kernels="group_norm",
    over="channels",
    functions={
        "group_norm": Function(in_groups(2), ((3, 4), (4,), (4,))),
        "group_norm of images": Function(in_groups(2), ((2, 4, 1, 3), (4,), (4,))),
        "group_norm without parameters": Function(in_groups(1), ((3, 2, 2),)),
        "group_norm without bias": Function(in_groups(3), ((2, 3, 3), (3,))),
    },
    layers={"GroupNorm": Layer((2, 6), (6, 3, 5))},
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "4x64x8x8", options=dict(groups=8)),
        Smoke("bf16", "33x129", options=dict(groups=3)),
        Smoke("bf16 fp32", "4x64x8x8", options=dict(groups=8), channels_last=True),
        Smoke("bf16 fp32 fp64", "2x32x64x64", options=dict(groups=2)),  # split
    ),
    measured=MEASURED,
)
