"""Dropout: activations of language models and of feature maps, from a few elements to a quarter of 2^30."""

import functools
from dataclasses import dataclass

import torch

from .case import each, is_mask_of_dropout, relative_error, worst
from .dropping import drop_path, dropout_under_mask
from .operation import Function, Layer, Measured, Operation, Smoke

P = 0.1
LANGUAGE = "16384x4096, 16384x768, 16384x12288"


@dataclass(frozen=True)
class Dropout(Function):
    """A function that drops and does nothing else; its call takes p."""

    leading: int | None = None  # how many dimensions name a decision; None: each element is one
    alpha: bool = False
    scaled: bool = True


def call(f, x, p=0.25, **options):
    return f(x, p, training=True, **options)


def error(reference, layer, x, dy, y, gradients):
    """The largest relative error under the layer's own mask, or inf where that is no such mask."""
    keep = y != 0
    decisions = x.shape[:2].numel() if isinstance(reference, torch.nn.Dropout2d) else x.numel()
    if not is_mask_of_dropout(keep, P, decisions):
        return float("inf")
    pairs = [(y, x), *((dx, dy) for dx in gradients)]
    return worst(relative_error(ours, given.double() * (keep / (1 - P))) for ours, given in pairs)


MEASURED = Measured(
    torch_layer=lambda case, **_: getattr(torch.nn, case.layer or "Dropout")(P),
    passes={"forward": 2, "backward": 2, "forward+backward": 4},  # x, y; dy, dx; both
    masked_error=error,
    small="fp32 64x128",
    ledger="8448x1024, fp32 8448x1024, 32x64x56x56 channels_last, "
    + each("32x64x56x56, 32x64x56x56 channels_last", "Dropout2d {}"),
    static="1024x1024, 32x64x56x56 channels_last, "
    + each("32x64x56x56, 32x64x56x56 channels_last, 32x512x2x4", "Dropout2d {}"),
    instructions="256x4096, fp32 256x4096, 4x64x56x56 channels_last, "
    + each("4x64x56x56, 4x64x56x56 channels_last", "Dropout2d {}"),
    host="8x768",
    speed={
        "language": LANGUAGE,
        "attention": "16x16x1024x1024",
        "vision": "64x256x56x56, 64x256x56x56 channels_last, "
        + each("64x256x56x56", "Dropout2d {}", "Dropout2d {} channels_last"),
        "small or awkward": "8x768, 1x4096, 4097x1001",
        "float32": "fp32 16384x4096, fp32 16384x768",
        "float16": "fp16 16384x4096, fp16 16384x768",
    },
)

FLAT = "bf16 fp32 fp16 fp64"
OPERATION = Operation(
    name="dropout",
    kernels="dropout",
    random=True,
    kept=lambda x, training: 0,
    masked=dropout_under_mask,
    formulas={"drop_path": drop_path},
    functions={
        "dropout": Dropout(call, ((3, 5, 2, 2),)),
        "dropout1d": Dropout(call, ((5, 5, 2),), leading=2),
        "dropout1d of one sample": Dropout(call, ((17, 3),), leading=1),
        "dropout2d": Dropout(call, ((5, 3, 2, 2),), leading=2),
        "dropout2d of single positions": Dropout(call, ((5, 7, 1, 1),), leading=2),
        "dropout3d": Dropout(call, ((5, 3, 2, 2, 1),), leading=2),
        "dropout3d of one sample": Dropout(call, ((15, 1, 2, 2),), leading=1),
        "alpha_dropout": Dropout(call, ((3, 5, 2, 2),), alpha=True),
        "feature_alpha_dropout": Dropout(call, ((5, 5, 2),), leading=2, alpha=True),
        "feature_alpha_dropout without positions": Dropout(call, ((5, 7),), leading=2, alpha=True),
        "drop_path": Dropout(call, ((17, 3, 1),), leading=1),
        "drop_path without scale": Dropout(
            functools.partial(call, scale_by_keep=False), ((17, 3, 1),), leading=1, scaled=False
        ),
        "dropout of everything": Function(functools.partial(call, p=1.0), ((4,),)),
        "alpha_dropout of everything": Function(functools.partial(call, p=1.0), ((4,),)),
    },
    layers={
        "Dropout": Layer((0.25,), (6,)),
        "Dropout in place": Layer(
            (0.4, True), (6,), module=lambda layer: torch.nn.Sequential(torch.nn.Linear(6, 6), layer)
        ),
        "Dropout1d": Layer((0.25,), (6, 3)),
        "Dropout2d": Layer((0.25,), (6, 2, 3)),
        "Dropout3d": Layer((0.25,), (6, 2, 2, 1)),
        "AlphaDropout": Layer((0.25,), (6,)),
        "FeatureAlphaDropout": Layer((0.25,), (6, 2)),
        "DropPath": Layer((0.4,), (4, 3)),
    },
    smoke=(
        Smoke(FLAT, "100x1000"),
        Smoke("bf16", "33x129"),
        Smoke("bf16 fp32", "8x40x7x7", "dropout2d"),
        Smoke("bf16", "8x40x8x8", "dropout2d", channels_last=True),
        Smoke("bf16 fp32", "8x40x8x8", channels_last=True),
        Smoke("bf16", "64x100", "drop_path"),
        Smoke("bf16 fp64", "100x1000", "alpha_dropout"),
    ),
    measured=MEASURED,
)
