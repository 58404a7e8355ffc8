"""InstanceNorm: the feature maps of image translation and of segmentation in three dimensions."""

import torch

from .case import DTYPES, Case, Operation

NAME = "instance_norm"
LAYERS = {3: "InstanceNorm1d", 4: "InstanceNorm2d", 5: "InstanceNorm3d"}

TRANSLATION = (  # CycleGAN: its generator at 256 x 256, and larger batches of its discriminator
    (1, 64, 256, 256),
    (1, 128, 128, 128),
    (1, 256, 64, 64),
    (16, 128, 64, 64),
    (16, 256, 32, 32),
)
SEGMENTATION = (  # nnU-Net at 128 x 128 x 128
    (2, 32, 128, 128, 128),
    (2, 64, 64, 64, 64),
    (2, 128, 32, 32, 32),
    (2, 320, 8, 8, 8),
)
AWKWARD = ((32, 512, 7, 7), (32, 128, 1000), (8, 33, 31, 29))
OTHER_DTYPES = ((16, 128, 64, 64), (2, 64, 64, 64, 64))


def layer(library, case, **options):
    cls = getattr(library, LAYERS[len(case.shape)])
    return cls(case.shape[1], affine=True, **options).train(case.training)


def shapes():
    for origin, group in (
        ("image translation", TRANSLATION),
        ("segmentation", SEGMENTATION),
        ("small or awkward", AWKWARD),
    ):
        yield from ((origin, shape) for shape in group)


OPERATION = Operation(
    name=NAME,
    layer=layer,
    # x, y; dy, x, dx; both; x, y
    passes={"forward": 2, "backward": 3, "forward+backward": 5, "evaluation": 2},
    ledger=(Case(NAME, (4, 40, 64, 64)), Case(NAME, (1, 20, 256, 128))),  # held and not
    static=tuple(
        Case(NAME, shape, dtype) for dtype in DTYPES.values() for shape in ((16, 64, 64, 64), (2, 32, 16, 8))
    ),
    instructions=(Case(NAME, (4, 64, 64, 64)), Case(NAME, (1, 20, 256, 128))),
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
