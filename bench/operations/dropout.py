"""Dropout: activations of language models and of feature maps, from a few elements to a quarter of 2^30."""

import torch

from .case import DTYPES, Case, Operation

NAME = "dropout"
P = 0.1

SHAPES = (
    ("language", (16384, 4096)),
    ("language", (16384, 768)),
    ("language", (16384, 12288)),
    ("attention", (16, 16, 1024, 1024)),
    ("vision", (64, 256, 56, 56)),
    ("small or awkward", (8, 768)),
    ("small or awkward", (1, 4096)),
    ("small or awkward", (4097, 1001)),
)


def layer(library, case, device=None, dtype=None):
    return library.Dropout(P).train(case.training)


OPERATION = Operation(
    name=NAME,
    layer=layer,
    passes={"forward": 2, "backward": 2},  # x, y; dy, dx
    ledger=(Case(NAME, (1024, 1024)), Case(NAME, (1024, 1024), torch.float32)),
    static=tuple(Case(NAME, (1024, 1024), dtype) for dtype in DTYPES.values()),
    host=(Case(NAME, (8, 768)),),
    speed=tuple(
        Case(NAME, shape, dtype, origin=origin)
        for dtype in (torch.bfloat16, torch.float32, torch.float16)
        for origin, shape in SHAPES
    ),
)
