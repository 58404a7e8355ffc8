"""Dropout: activations of language models and of feature maps, from a few elements to a quarter of 2^30."""

import torch

from .case import DTYPES, Case, Operation, is_mask_of_dropout, relative_error, worst

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
    return getattr(library, case.layer or "Dropout")(P).train(case.training)


def error(reference, layer, x, dy, y, gradients):
    """The largest relative error under the layer's own mask, or inf where that is no such mask."""
    keep = y != 0
    decisions = x.shape[:2].numel() if isinstance(reference, torch.nn.Dropout2d) else x.numel()
    if not is_mask_of_dropout(keep, P, decisions):
        return float("inf")
    scale = keep / (1 - P)
    errors = [relative_error(y, x.double() * scale)]
    errors += [relative_error(dx, dy.double() * scale) for dx in gradients]
    return worst(errors)


OPERATION = Operation(
    name=NAME,
    layer=layer,
    passes={"forward": 2, "backward": 2, "forward+backward": 4},  # x, y; dy, dx; both
    ledger=(
        Case(NAME, (640, 1024)),
        Case(NAME, (640, 1024), torch.float32),
        Case(NAME, (4, 40, 64, 64), layer="Dropout2d"),
        Case(NAME, (4, 40, 64, 64), channels_last=True, layer="Dropout2d"),
    ),
    static=(
        *(Case(NAME, (1024, 1024), dtype) for dtype in DTYPES.values()),
        *(
            Case(NAME, shape, dtype, channels_last, layer="Dropout2d")
            for dtype in DTYPES.values()
            for shape, channels_last in (
                ((32, 64, 56, 56), False),
                ((32, 64, 56, 56), True),
                ((32, 512, 2, 4), False),
            )
        ),
    ),
    instructions=(
        Case(NAME, (256, 4096)),
        Case(NAME, (256, 4096), torch.float32),
        Case(NAME, (4, 64, 56, 56), layer="Dropout2d"),
        Case(NAME, (4, 64, 56, 56), channels_last=True, layer="Dropout2d"),
    ),
    host=(Case(NAME, (8, 768)),),
    masked_error=error,
    speed=(
        *(Case(NAME, shape, origin=origin) for origin, shape in SHAPES),
        *(
            Case(NAME, (64, 256, 56, 56), channels_last=channels_last, layer="Dropout2d", origin="vision")
            for channels_last in (False, True)
        ),
        *(Case(NAME, shape, torch.float32, origin="float32") for _, shape in SHAPES[:2]),
        *(Case(NAME, shape, torch.float16, origin="float16") for _, shape in SHAPES[:2]),
    ),
)
