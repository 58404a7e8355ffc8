"""Dropout, or stochastic depth, and the sum with a residual: blocks whose norm lives elsewhere."""

import torch
import torch.nn.functional as F

from normreg import functional

from .calls import by_row
from .case import each
from .composed import Composed, Residual, error_under_mask
from .dropout import LANGUAGE
from .dropping import drop_path, scaled_branch
from .operation import Function, Layer, Measured, Operation, Smoke

P = 0.1


def dropout_add(x, residual, p=0.5, training=True, *, row_scale=None, layer_scale=None, drop=F.dropout):
    return residual + scaled_branch(drop(x, p, training), row_scale, layer_scale)


def drop_path_add(x, residual, drop_prob, training=True, *, layer_scale=None, drop=drop_path):
    return residual + scaled_branch(drop(x, drop_prob, training), None, layer_scale)


def torch_layer(case, device=None, dtype=None):
    """The sum of "dropout+add" or "drop path+add", behind "scaled" where there is a layer scale."""
    scale = torch.rand(case.shape[-1], device=device, dtype=dtype) + 0.5
    tensors = {
        "residual": case.like_input(torch.randn, device, dtype),
        "layer_scale": scale if case.layer.startswith("scaled") else None,
    }
    if "path" in case.layer:
        return Composed(drop_path_add, functional.drop_path_add, tensors, drop_prob=P)
    return Composed(dropout_add, functional.dropout_add, tensors, p=P)


OPERATION = Operation(
    name="dropout_add",
    kernels="dropout",
    over="rows",
    random=True,
    formulas={"dropout_add": dropout_add, "drop_path_add": drop_path_add},
    functions={
        "dropout_add": Function(
            lambda f, x, residual, p=0.4, **options: f(x, residual, p, **options), ((2, 3), (2, 3))
        ),
        "dropout_add with a layer scale": Function(
            lambda f, x, residual, scale, p=0.4, **options: f(x, residual, p, layer_scale=scale, **options),
            ((2, 3), (2, 3), (3,)),
        ),
        "dropout_add with scales": Function(
            lambda f, x, residual, scale, p=0.4, **options: f(
                x, residual, p, layer_scale=scale, row_scale=by_row(x), **options
            ),
            ((2, 3), (2, 3), (3,)),
        ),
        "drop_path_add": Function(
            lambda f, x, residual, p=0.4, **options: f(x, residual, p, True, **options), ((4, 2), (4, 2))
        ),
    },
    layers={
        "DropoutAdd": Layer((0.4,), (4, 3), module=Residual),
        "DropPathAdd": Layer((0.4,), (4, 3), module=Residual),
    },
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "129x768"),
        Smoke("bf16 fp32", "129x768", "dropout_add with scales"),
        Smoke("bf16", "8x40x7x7", "drop_path_add"),
    ),
    measured=Measured(
        torch_layer=torch_layer,
        fuse=Composed.fuse,
        # x, residual, z; dz, dx, where the residual's gradient is dz itself; both
        passes={"forward": 3, "backward": 2, "forward+backward": 5},
        # the gradient of a layer scale needs x
        more_passes=lambda case, direction: case.layer.startswith("scaled") and "backward" in direction,
        masked_error=error_under_mask,
        small="scaled drop path+add fp32 400x3x12",
        ledger="dropout+add 8448x1024, drop path+add 32x64x56x56, scaled dropout+add 2112x4096",
        static="dropout+add 4096x1024, scaled drop path+add 64x197x768, scaled dropout+add 4096x1000, "
        "drop path+add 32x96x56x56 channels_last",
        instructions="dropout+add 1024x1024, scaled drop path+add 7x197x768, scaled dropout+add 1056x1000, "
        "drop path+add 4x96x56x56 channels_last",
        host="dropout+add 8x768",
        speed={
            "language": each(LANGUAGE, "dropout+add {}", "scaled drop path+add {}"),
            "ViT-B": each("128x197x768", "dropout+add {}", "scaled drop path+add {}"),
        },
    ),
)
