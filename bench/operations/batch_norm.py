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
OTHER_DTYPES = ((64, 64, 56, 56), (64, 512, 28, 28), (64, 2048, 7, 7))


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
    yield "video", (4, 64, 16, 56, 56), False


OPERATION = Operation(
    name=NAME,
    layer=layer,
    # x, y; dy, x, dx; both; x, y
    passes={"forward": 2, "backward": 3, "forward+backward": 5, "evaluation": 2},
    ledger=(
        Case(NAME, (4, 40, 64, 64)),
        Case(NAME, (4, 40, 64, 64), channels_last=True),
        Case(NAME, (32, 420, 7, 7)),
        Case(NAME, (2560, 256)),
        Case(NAME, (4, 40, 64, 64), training=False),
        Case(NAME, (4, 40, 64, 64), channels_last=True, training=False),
    ),
    static=tuple(
        Case(NAME, shape, dtype, channels_last, training)
        for dtype in DTYPES.values()
        for shape, channels_last, training in (
            ((32, 64, 56, 56), False, True),
            ((32, 64, 56, 56), True, True),
            ((32, 64, 56, 56), False, False),
            ((32, 64, 56, 56), True, False),
            ((32, 512, 7, 8), False, True),
            ((4, 512, 32, 64), False, True),
            ((16, 512, 32, 32), False, True),
            ((128, 512), False, True),
            ((128, 512), False, False),
        )
    ),
    instructions=(
        Case(NAME, (8, 64, 56, 56)),
        Case(NAME, (8, 64, 56, 56), channels_last=True),
        Case(NAME, (8, 64, 56, 56), training=False),
        Case(NAME, (8, 64, 56, 56), channels_last=True, training=False),
        Case(NAME, (32, 512, 7, 8)),
        Case(NAME, (16, 64, 32, 32)),
        Case(NAME, (32, 420, 7, 7), channels_last=True),
        Case(NAME, (1024, 1024)),
    ),
    host=(Case(NAME, (8, 64, 4, 4)), Case(NAME, (8, 64, 4, 4), training=False)),
    speed=(
        *(Case(NAME, shape, channels_last=last, origin=origin) for origin, shape, last in shapes()),
        *(
            Case(NAME, shape, dtype, channels_last, origin=origin)
            for origin, dtype in (("float32", torch.float32), ("float16", torch.float16))
            for shape in OTHER_DTYPES
            for channels_last in (True, False)
        ),
        Case(NAME, (4, 128, 1024, 1024), torch.float16, origin="float16"),
    ),
)
