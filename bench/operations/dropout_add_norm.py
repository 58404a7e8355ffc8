"""Dropout, sum with a residual and norm: the seams of transformer blocks, post-norm and pre-norm."""

import torch
import torch.nn.functional as F

from . import layer_norm
from .calls import by_row
from .case import each, in_float_dtypes
from .composed import Residual, Seam, error_under_mask
from .dropping import scaled_branch
from .operation import Function, Layer, Measured, Operation, Smoke

P = 0.1
KINDS = "prenorm dropout+add+LayerNorm {}", "dropout+add+LayerNorm {}", "prenorm dropout+add+RMSNorm {}"
LANGUAGE = "16384x1024, 16384x4096, 8192x8192, 32768x768, 8192x12288, 4096x16384, 1024x65536"


def formula(norm):
    def function(
        x, residual, shape, *parameters, p, prenorm=False, row_scale=None, layer_scale=None, drop=F.dropout
    ):
        z = scaled_branch(drop(x, p, True), row_scale, layer_scale) + residual
        y = norm(z, shape, *parameters)
        return (y, z) if prenorm else y

    return function


def drops(case):
    return "dropout" in case.layer


def torch_layer(case, device=None, dtype=None):
    """The seam of "dropout+add+LayerNorm" or "add+RMSNorm", behind "prenorm" where z is used, too."""
    *prenorm, parts = case.layer.split()
    norm = getattr(torch.nn, parts.split("+")[-1])(case.shape[-1], device=device, dtype=dtype)
    residual = case.like_input(torch.randn, device, dtype)
    return Seam(norm, residual, bool(prenorm), P * drops(case))


def of_the_sum(f, x, residual, *parameters, p=0.4, **options):
    return f(x, residual, x.shape[-1:], *parameters, p=p, **options)


def both_of_a_sum(f, *inputs, **options):
    """y + z * 2, so that one incoming gradient reaches both."""
    y, z = of_the_sum(f, *inputs, prenorm=True, **options)
    return y + z * 2


def both(f, x, residual, layer_scale, *parameters, **options):
    return both_of_a_sum(f, x, residual, *parameters, layer_scale=layer_scale, **options)


def both_scaled_by_row(f, x, *inputs, **options):
    return both(f, x, *inputs, row_scale=by_row(x), **options)


SUM = (2, 3), (2, 3)
OPERATION = Operation(
    name="dropout_add_norm",
    kernels="dropout",
    over="rows",
    random=True,
    formulas={
        "dropout_add_layer_norm": formula(F.layer_norm),
        "dropout_add_rms_norm": formula(F.rms_norm),
    },
    functions={
        "dropout_add_layer_norm": Function(of_the_sum, (*SUM, (3,), (3,))),
        "dropout_add_layer_norm alone": Function(of_the_sum, SUM),
        "dropout_add_layer_norm and the sum": Function(both, (*SUM, (3,), (3,), (3,))),
        "dropout_add_layer_norm of weight and the sum": Function(both_of_a_sum, (*SUM, (3,))),
        "dropout_add_rms_norm": Function(of_the_sum, (*SUM, (3,))),
        "dropout_add_rms_norm of weight and the sum": Function(both_of_a_sum, (*SUM, (3,))),
        "dropout_add_rms_norm and the sum": Function(both, (*SUM, (3,), (3,))),
        "dropout_add_rms_norm and the sum, scaled by row": Function(
            both_scaled_by_row, ((2, 1, 3), (2, 1, 3), (3,), (3,))
        ),
    },
    layers={
        "DropoutAddLayerNorm": Layer((4,), (3, 4), dict(p=0.4, layer_scale=0.5), Residual),
        "DropoutAddRMSNorm": Layer((4,), (3, 4), dict(p=0.4), Residual),
        "DropoutAddRMSNorm, prenorm": Layer((4,), (4,), dict(p=0.4, prenorm=True), Residual),
    },
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "768", "dropout_add_layer_norm of weight and the sum"),
        Smoke("bf16 fp32", "768", "dropout_add_layer_norm of weight and the sum", dict(p=0.0)),
        Smoke("bf16", "5120", "dropout_add_layer_norm of weight and the sum"),  # several tiles
        Smoke("bf16", "1025", "dropout_add_rms_norm and the sum"),
        Smoke("bf16", "131072", "dropout_add_rms_norm of weight and the sum"),  # chunks
    ),
    measured=Measured(
        torch_layer=torch_layer,
        fuse=Seam.fuse,
        # x, residual, z, y; dy, z, dx, dresidual; both; x, residual, y
        passes={"forward": 4, "backward": 4, "forward+backward": 8, "evaluation": 3},
        # a pre-norm block has the gradient of z to read, too, and a mere sum one gradient to write
        more_passes=lambda case, direction: (
            (case.layer.startswith("prenorm") - (not drops(case))) * ("backward" in direction)
        ),
        masked_error=error_under_mask,
        small="prenorm dropout+add+LayerNorm fp32 40x64",
        ledger="prenorm dropout+add+LayerNorm 2112x4096, dropout+add+RMSNorm 8448x1024, "
        "prenorm add+RMSNorm 2112x4096, prenorm dropout+add+LayerNorm 132x65536",
        static=each("4096x4096, 4096x64, 4096x8192, 4096x16384, 4096x65536", KINDS[0])
        + ", dropout+add+LayerNorm 4096x1024, prenorm dropout+add+RMSNorm 4096x4096",
        instructions=each("264x4096", KINDS[0], KINDS[2], "prenorm add+RMSNorm {}")
        + ", dropout+add+LayerNorm 1024x1024, "
        + each("16384x64, 66x16384, 16x65536", KINDS[0]),
        exactness=in_float_dtypes("prenorm add+LayerNorm 128x768")
        + ", prenorm add+RMSNorm fp32 128x768, add+LayerNorm fp32 128x4096",
        together=layer_norm.MEASURED.together,
        host="prenorm dropout+add+LayerNorm 8x768",
        speed={
            "language": each(LANGUAGE, *KINDS),
            "float32": each("fp32 16384x4096", *KINDS),
        },
    ),
)
