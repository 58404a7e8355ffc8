"""Dropout: activations of language models and of feature maps, from a few elements to a quarter of 2^30."""

import torch

from .case import DTYPES, Case, Operation, relative_error

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


def error(reference, layer, x, dy, y, gradients):
    """The largest relative error under the layer's own mask, or inf where that is no such mask."""
    keep = y != 0
    standard_error = (P * (1 - P) / x.numel()) ** 0.5
    # 2^-16: p is rounded to 16 bits by some
    if abs(keep.double().mean().item() - (1 - P)) > 6 * standard_error + 2**-16:
        return float("inf")
    scale = keep / (1 - P)
    errors = [relative_error(y, x.double() * scale)]
    errors += [relative_error(dx, dy.double() * scale) for dx in gradients]
    return max(errors)


OPERATION = Operation(
    name=NAME,
    layer=layer,
    passes={"forward": 2, "backward": 2, "forward+backward": 4},  # x, y; dy, dx; both
    ledger=(Case(NAME, (640, 1024)), Case(NAME, (640, 1024), torch.float32)),
    static=tuple(Case(NAME, (1024, 1024), dtype) for dtype in DTYPES.values()),
    host=(Case(NAME, (8, 768)),),
    error=error,
    speed=(
        *(Case(NAME, shape, origin=origin) for origin, shape in SHAPES),
        *(Case(NAME, shape, torch.float32, origin="float32") for _, shape in SHAPES[:2]),
        *(Case(NAME, shape, torch.float16, origin="float16") for _, shape in SHAPES[:2]),
    ),
)
