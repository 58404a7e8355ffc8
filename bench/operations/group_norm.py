"""GroupNorm: feature maps of diffusion models and detectors, and the groups that are hard to spread."""

import torch

from .case import DTYPES, Case, Operation

NAME = "group_norm"
GROUPS = 32

DIFFUSION = (  # Stable Diffusion: its U-Net at 64 x 64, and its decoder
    (16, 320, 64, 64),
    (4, 320, 64, 64),
    (16, 640, 32, 32),
    (16, 1280, 16, 16),
    (16, 1280, 8, 8),
    (4, 512, 64, 64),
    (4, 256, 256, 256),
    (1, 128, 512, 512),
)
DETECTION = (  # ResNet-50 with GroupNorm
    (32, 64, 112, 112),
    (32, 256, 56, 56),
    (32, 512, 28, 28),
    (32, 1024, 14, 14),
    (32, 2048, 7, 7),
)
AWKWARD = ((1, 32, 33, 35), (4096, 1024), (65536, 128), (64, 96, 16384), (2, 32, 64, 128, 128))
OTHER_DTYPES = ((16, 640, 32, 32), (32, 256, 56, 56), (1, 128, 512, 512))


def layer(library, case, **options):
    return library.GroupNorm(GROUPS, case.shape[1], **options).train(case.training)


def shapes():
    for origin, group in (("diffusion", DIFFUSION), ("detection", DETECTION), ("small or awkward", AWKWARD)):
        yield from ((origin, shape) for shape in group)


OPERATION = Operation(
    name=NAME,
    layer=layer,
    # x, y; dy, x, dx; both; x, y
    passes={"forward": 2, "backward": 3, "forward+backward": 5, "evaluation": 2},
    ledger=(
        Case(NAME, (4, 160, 32, 32)),  # 5 channels a group
        Case(NAME, (10, 64, 32, 32)),
        Case(NAME, (5, 1024, 8, 16)),
        Case(NAME, (2560, 256)),
        Case(NAME, (1, 32, 160, 128)),  # groups that are not held
    ),
    static=tuple(
        Case(NAME, shape, dtype)
        for dtype in DTYPES.values()
        for shape in (
            (16, 640, 32, 32),
            (16, 320, 64, 64),
            (16, 1280, 8, 8),
            (256, 512),
            (16, 128, 64, 64),
            (16, 64, 64, 64),
            (16, 128, 4, 4),
        )
    ),
    instructions=(
        Case(NAME, (4, 320, 32, 32)),
        Case(NAME, (4, 64, 64, 64)),
        Case(NAME, (2048, 512)),
        Case(NAME, (512, 128, 4, 4)),
        Case(NAME, (1, 128, 128, 128)),  # groups that are not held
    ),
    host=(Case(NAME, (8, 64, 4, 4)),),
    speed=(
        *(Case(NAME, shape, origin=origin) for origin, shape in shapes()),
        *(
            Case(NAME, shape, dtype, origin=origin)
            for origin, dtype in (("float32", torch.float32), ("float16", torch.float16))
            for shape in OTHER_DTYPES
        ),
    ),
)
