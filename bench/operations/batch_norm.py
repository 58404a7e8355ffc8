"""BatchNorm: the feature maps of three convolutional networks in both memory formats, and (N, C)."""

import torch

from .case import DTYPES, Case, Operation

NAME = "batch_norm"
LAYERS = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}

RESNET_50 = (
    (64, 64, 112, 112),
    (64, 64, 56, 56),
    (64, 256, 56, 56),
    (64, 128, 28, 28),
    (64, 512, 28, 28),
    (64, 1024, 14, 14),
    (64, 2048, 7, 7),
)
EFFICIENTNET_B0 = (
    (64, 32, 112, 112),
    (64, 96, 112, 112),
    (64, 144, 56, 56),
    (64, 240, 28, 28),
    (64, 672, 14, 14),
    (64, 1152, 7, 7),
)
AWKWARD = (
    (2, 64, 56, 56),
    (1, 32, 33, 35),
    (8, 64, 32, 32),
    (4, 3, 1024, 1024),
    (4, 16, 1024, 1024),
    (4, 128, 1024, 1024),
    (33, 65, 31, 29),
)
FLAT = ((32, 64), (4096, 1024), (65536, 128), (1000, 1001), (32, 128, 16384))


def layer(library, case, **options):
    cls = getattr(library, LAYERS[len(case.shape)])
    return cls(case.shape[1], **options).train(case.training)


def shapes():
    for origin, group in (
        ("ResNet-50", RESNET_50),
        ("EfficientNet-B0", EFFICIENTNET_B0),
        ("small or awkward", AWKWARD),
    ):
        yield from ((origin, shape, channels_last) for shape in group for channels_last in (True, False))
    yield from (("BatchNorm1d", shape, False) for shape in FLAT)


OPERATION = Operation(
    name=NAME,
    layer=layer,
    passes={"forward": 2, "backward": 3},  # x, y; dy, x, dx
    ledger=tuple(
        Case(NAME, shape, channels_last=channels_last, training=training)
        for training in (True, False)
        for shape, channels_last in (
            ((4, 64, 64, 64), False),
            ((4, 64, 64, 64), True),
            ((32, 672, 7, 7), False),
            ((4096, 256), False),
        )
    ),
    static=tuple(
        Case(NAME, shape, dtype, channels_last, training)
        for dtype in DTYPES.values()
        for shape, channels_last in (
            ((32, 64, 56, 56), False),
            ((32, 64, 56, 56), True),
            ((32, 512, 7, 8), False),
            ((256, 512), False),
        )
        for training in (True, False)
    ),
    host=(Case(NAME, (8, 64, 4, 4)), Case(NAME, (8, 64, 4, 4), training=False)),
    speed=tuple(
        Case(NAME, shape, dtype, channels_last, origin=origin)
        for dtype in (torch.bfloat16, torch.float32, torch.float16)
        for origin, shape, channels_last in shapes()
    ),
)
