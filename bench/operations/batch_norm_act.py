"""BatchNorm with the activation that follows it, and with a residual added in between: blocks of networks."""

import torch
import torch.nn.functional as F

from . import batch_norm
from .calls import ACTIVATIONS, followed_by, without_statistics
from .case import each, in_float_dtypes
from .composed import NormAct, Residual
from .operation import Function, Layer, Measured, Operation, Smoke

RESNET_50 = "64x64x112x112, 64x64x56x56, 64x256x56x56, 64x512x28x28, 64x2048x7x7"
EFFICIENTNET_B0 = "64x96x112x112, 64x240x28x28, 64x1152x7x7"
IN_NETWORKS = {
    "ResNet-50": each(RESNET_50, "batch_norm+relu {} channels_last", "batch_norm+relu {}")
    + ", "
    + each(
        "64x256x56x56, 64x512x28x28, 64x2048x7x7",
        "batch_norm+add+relu {} channels_last",
        "batch_norm+add+relu {}",
    ),
    "EfficientNet-B0": each(EFFICIENTNET_B0, "batch_norm+silu {} channels_last", "batch_norm+silu {}"),
    "MobileNetV3": "batch_norm+hardswish 64x240x28x28 channels_last, batch_norm+hardswish 64x240x28x28",
}


def batch_norm_act(
    x, mean, var, weight=None, bias=None, training=False, *, act, residual=None, negative_slope=0.3
):
    assert negative_slope == 0.3, "ACTIVATIONS has no other"
    y = F.batch_norm(x, mean, var, weight, bias, training)
    return ACTIVATIONS[act](y if residual is None else y + residual)


def parts(case):
    """(whether a residual is added, activation) of "batch_norm+add+relu", "batch_norm+add" or the like."""
    _, *words = case.layer.split("+")
    return "add" in words, words[-1] if words[-1] != "add" else None


def adds(case):
    return parts(case)[0]


def torch_layer(case, device=None, dtype=None):
    norm = torch.nn.BatchNorm2d(case.shape[1], device=device, dtype=dtype)
    residual = case.like_input(torch.randn, device, dtype) if adds(case) else None
    return NormAct(norm, parts(case)[1], residual)


PLAIN, SUM = ((4, 2), (2,), (2,)), ((4, 2), (2,), (2,), (4, 2))
OPERATION = Operation(
    name="batch_norm_act",
    kernels="batch_norm",
    over="channels",
    formulas={"batch_norm_act": batch_norm_act},
    functions={
        "batch_norm_act": Function(lambda f, *inputs: without_statistics(f, *inputs, act="relu"), PLAIN),
        "batch_norm_act of relu": Function(followed_by("relu"), PLAIN),
        "batch_norm_act of a sum, leaky_relu": Function(followed_by("leaky_relu", negative_slope=0.3), SUM),
        "batch_norm_act of a sum, relu": Function(followed_by("relu"), SUM),
        "batch_norm_act of a sum, relu6 in evaluation": Function(followed_by("relu6", False), SUM),
        "batch_norm_act of a sum": Function(followed_by(None), SUM),
        "batch_norm_act of silu": Function(followed_by("silu"), PLAIN),
        "batch_norm_act of gelu": Function(followed_by("gelu"), PLAIN),
        "batch_norm_act of a sum, gelu": Function(followed_by("gelu"), SUM),
        "batch_norm_act of gelu_tanh in evaluation": Function(followed_by("gelu_tanh", False), PLAIN),
        "batch_norm_act of relu in evaluation": Function(followed_by("relu", False), PLAIN),
        "batch_norm_act of a sum, hardswish without parameters": Function(
            lambda f, x, residual: followed_by("hardswish")(f, x, residual=residual), ((4, 2), (4, 2))
        ),
    },
    layers={
        "BatchNormAct1d": Layer((4,), (4, 3), dict(act="silu")),
        "BatchNormAct2d": Layer((6,), (6, 2, 2), dict(act="silu")),
        "BatchNormAct2d with a residual": Layer((4,), (4, 3, 5), module=Residual),
        "BatchNormAct3d": Layer((2,), (2, 3, 2, 2)),
    },
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "8x6x5x5", "batch_norm_act of silu"),
        Smoke("bf16", "8x6x5x5", "batch_norm_act of a sum, relu"),
        Smoke("bf16 fp32", "32x64x14x14", "batch_norm_act of a sum, relu", channels_last=True),
        Smoke("bf16", "4x3x200x201", "batch_norm_act of gelu"),
        Smoke("bf16", "8x6x5x5", "batch_norm_act of relu in evaluation"),
    ),
    measured=Measured(
        torch_layer=torch_layer,
        fuse=NormAct.fuse,
        passes=batch_norm.MEASURED.passes,
        # a residual is read; written as its gradient; both; read
        more_passes=lambda case, direction: adds(case) * (1 + (direction == "forward+backward")),
        small="batch_norm+add+relu fp32 4x6x5x3",
        ledger="batch_norm+relu 32x2048x7x7, batch_norm+add+relu 32x2048x7x7, "
        + each(
            "32x64x56x56 channels_last",
            "batch_norm+relu {}",
            "batch_norm+add+relu {}",
            "batch_norm+add+silu {}",
        )
        + ", batch_norm+add+relu 32x64x56x56 evaluation",
        static=each("32x64x56x56, 32x64x56x56 channels_last", "batch_norm+add+relu {}")
        + ", batch_norm+gelu 32x64x56x56, batch_norm+add+gelu 32x64x56x56 channels_last, "
        "batch_norm+add+relu 32x64x56x56 channels_last evaluation, batch_norm+add+silu 4x512x32x64, "
        + each("16x512x32x32", "batch_norm+add+relu {}", "batch_norm+gelu {}")
        + ", batch_norm+add+relu 32x512x7x8, "
        + each("64x512x1x1", "batch_norm+add+relu {}", "batch_norm+add+gelu {}")
        + ", batch_norm+add+gelu 128x512x1x1",
        instructions=each("8x64x56x56, 8x64x56x56 channels_last", "batch_norm+add+relu {}")
        + ", batch_norm+gelu 8x64x56x56, batch_norm+add+relu 8x64x56x56 channels_last evaluation, "
        "batch_norm+add+silu 16x64x32x32, batch_norm+add+relu 32x512x7x8",
        # not relu: next to its kink one result has the one slope, and another the other
        exactness=in_float_dtypes("batch_norm+add 8x32x28x28")
        + ", batch_norm+add fp32 8x32x28x28 channels_last, batch_norm+add+silu fp32 8x32x28x28",
        together=batch_norm.MEASURED.together,
        host="batch_norm+relu 8x64x4x4, batch_norm+add+relu 8x64x4x4",
        speed=IN_NETWORKS | {"float32": each(", ".join(IN_NETWORKS.values()), "fp32 {}")},
    ),
)
