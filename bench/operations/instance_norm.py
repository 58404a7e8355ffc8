"""InstanceNorm: the feature maps of image translation and of segmentation in three dimensions."""

import torch
import torch.nn.functional as F

from .calls import as_they_are, running
from .case import each, in_float_dtypes
from .operation import Function, Layer, Measured, Operation, Smoke

CLASSES = {3: torch.nn.InstanceNorm1d, 4: torch.nn.InstanceNorm2d, 5: torch.nn.InstanceNorm3d}
OTHER_DTYPES = "16x128x64x64, 2x64x64x64x64"
VOLUMES = "1x32x64x64x64 channels_last"
WITH_STATE = "group_norm instance_norm"  # the names of the kernels


def instances(use_input_stats):
    return lambda f, x, weight, bias: f(x, *running(x, weight), weight, bias, use_input_stats)


def layer(case, **options):
    layer = CLASSES[len(case.shape)](case.shape[1], affine=True, **options)
    if case.channels_last:  # which torch's layer does not look at, and `replace` keeps
        layer.memory_format = torch.preserve_format
    return layer


def preserving(f, x, weight, bias):
    """A call of normreg's function that keeps channels_last until the end; torch's has no such option."""
    options = {} if f is F.instance_norm else dict(memory_format=torch.preserve_format)
    last = x.contiguous(memory_format=torch.channels_last)
    return f(last, weight=weight, bias=bias, **options).contiguous()


OPERATION = Operation(
    name="instance_norm",
    kernels="group_norm",
    over="channels",
    functions={
        "instance_norm": Function(
            lambda f, x, weight, bias: f(x, weight=weight, bias=bias), ((2, 2, 4), (2,), (2,))
        ),
        "instance_norm with statistics": Function(instances(True), ((2, 2, 4), (2,), (2,))),
        "instance_norm without parameters": Function(as_they_are, ((2, 2, 3),)),
        "instance_norm of channels_last": Function(preserving, ((2, 2, 2, 3), (2,), (2,))),
        "instance_norm in evaluation": Function(instances(False), ((2, 2, 2), (2,), (2,))),
    },
    layers={
        "InstanceNorm1d": Layer((6, 1e-5, 0.1, True, True), (6, 5), kernels=WITH_STATE),
        "InstanceNorm1d without parameters": Layer((4,), (4, 3)),
        "InstanceNorm2d": Layer((3, 1e-5, 0.1, True), (3, 4, 4)),
        "InstanceNorm2d with state": Layer((4, 1e-5, 0.1, True, True), (4, 3, 5), kernels=WITH_STATE),
        "InstanceNorm3d": Layer((2,), (2, 3, 2, 2)),
        "InstanceNorm3d, cumulative": Layer((4, 1e-5, None, False, True), (4, 2, 1, 3), kernels=WITH_STATE),
    },
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "8x6x5x7", "instance_norm with statistics"),
        Smoke("bf16", "2x3x200x201", "instance_norm with statistics"),  # split
    ),
    measured=Measured(
        torch_layer=layer,
        # x, y; dy, x, dx; both; x, y
        passes={"forward": 2, "backward": 3, "forward+backward": 5, "evaluation": 2},
        small="fp32 3x6x5x7",
        # held and not, and so in channels-last format
        ledger=f"32x64x64x64, 4x64x256x128, 64x512x16x16 channels_last, 32x64x64x64 channels_last, {VOLUMES}",
        static="16x64x64x64, 2x32x16x8, 16x256x16x16 channels_last, 16x64x64x64 channels_last",
        instructions="4x64x64x64, 1x20x256x128, 16x256x16x16 channels_last, 4x64x64x64 channels_last",
        exactness=in_float_dtypes("8x32x28x28"),
        together=lambda t, case: t.flatten(2).flatten(0, 1),
        host="8x64x4x4",
        speed={
            # CycleGAN: its generator at 256 x 256, and larger batches of its discriminator
            "image translation": "1x64x256x256, 1x128x128x128, 1x256x64x64, 16x128x64x64, 16x256x32x32",
            # nnU-Net at 128 x 128 x 128
            "segmentation": "2x32x128x128x128, 2x64x64x64x64, 2x128x32x32x32, 2x320x8x8x8",
            "small or awkward": "32x512x7x7, 32x128x1000, 8x33x31x29",
            "float32": each(OTHER_DTYPES, "fp32 {}"),
            "float16": each(OTHER_DTYPES, "fp16 {}"),
        },
    ),
)
