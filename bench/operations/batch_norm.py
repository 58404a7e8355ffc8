"""BatchNorm: the feature maps of three convolutional networks in both memory formats, and (N, C)."""

import torch

from .calls import with_statistics, without_statistics
from .case import each, in_float_dtypes
from .operation import Function, Layer, Measured, Operation, Smoke

CLASSES = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d, 5: torch.nn.BatchNorm3d}
RESNET_50 = "64x64x112x112, 64x64x56x56, 64x256x56x56, 64x128x28x28, 64x512x28x28, 64x1024x14x14, 64x2048x7x7"
EFFICIENTNET_B0 = "64x32x112x112, 64x96x112x112, 64x144x56x56, 64x240x28x28, 64x672x14x14, 64x1152x7x7"
AWKWARD = "2x64x56x56, 1x32x33x35, 8x64x32x32, 4x3x1024x1024, 4x16x1024x1024, 4x128x1024x1024, 33x65x31x29"
OTHER_DTYPES = "64x64x56x56, 64x512x28x28, 64x2048x7x7"
IN_TRAINING, IN_EVALUATION = with_statistics(True), with_statistics(False)

MEASURED = Measured(
    torch_layer=lambda case, **options: CLASSES[len(case.shape)](case.shape[1], **options),
    # x, y; dy, x, dx; both; x, y
    passes={"forward": 2, "backward": 3, "forward+backward": 5, "evaluation": 2},
    small="fp32 4x6x5x3 channels_last",
    ledger="32x64x56x56, 32x64x56x56 channels_last, 32x2048x7x7, 4x512x64x64, 32768x256, "
    "32x64x56x56 evaluation, 32x64x56x56 channels_last evaluation",
    static=each("32x64x56x56", "{}", "{} channels_last", "{} evaluation", "{} channels_last evaluation")
    + ", 32x512x7x8, 4x512x32x64, 16x512x32x32, 128x512, 128x512 evaluation",
    instructions=each("8x64x56x56", "{}", "{} channels_last", "{} evaluation", "{} channels_last evaluation")
    + ", 32x512x7x8, 16x64x32x32, 32x420x7x7 channels_last, 1024x1024",
    # then of channels_last, split, and rows
    exactness=in_float_dtypes("8x32x28x28")
    + ", fp32 8x32x28x28 channels_last, fp32 1x4x256x128, fp32 1024x128",
    together=lambda t, case: t.transpose(0, 1).flatten(1),
    host="8x64x4x4, 8x64x4x4 evaluation",
    speed={
        "ResNet-50": each(RESNET_50, "{} channels_last", "{}"),
        "EfficientNet-B0": each(EFFICIENTNET_B0, "{} channels_last", "{}"),
        "small or awkward": each(AWKWARD, "{} channels_last", "{}"),
        "BatchNorm1d": "32x64, 4096x1024, 65536x128, 1000x1001, 32x128x16384",
        "video": "4x64x16x56x56",
        "float32": each(OTHER_DTYPES, "fp32 {} channels_last", "fp32 {}"),
        "float16": each(OTHER_DTYPES, "fp16 {} channels_last", "fp16 {}") + ", fp16 4x128x1024x1024",
    },
)

OPERATION = Operation(
    name="batch_norm",
    kernels="batch_norm",
    over="channels",
    # mean in float64 and var in float32; in evaluation, copies of the running statistics
    kept=lambda x, training: x.shape[1] * (8 + 4 if training else 2 * x.element_size()),
    functions={
        "batch_norm": Function(without_statistics, ((5, 3), (3,), (3,))),
        "batch_norm with statistics": Function(IN_TRAINING, ((5, 3), (3,), (3,))),
        "batch_norm of images": Function(IN_TRAINING, ((2, 2, 1, 3), (2,), (2,))),
        "batch_norm without parameters": Function(IN_TRAINING, ((5, 2),)),
        "batch_norm without bias": Function(IN_TRAINING, ((5, 2), (2,))),
        "batch_norm in evaluation": Function(IN_EVALUATION, ((2, 2, 2), (2,), (2,))),
        "batch_norm in evaluation without parameters": Function(IN_EVALUATION, ((5, 2),)),
    },
    layers={
        "BatchNorm1d": Layer((6,), (6,)),
        "BatchNorm1d, split": Layer((6,), (6,), dict(momentum=None)),
        "BatchNorm2d": Layer((3,), (3, 4, 4)),
        "BatchNorm2d, cumulative": Layer((4,), (4, 3, 3), dict(momentum=None)),
        "BatchNorm3d": Layer((2,), (2, 3, 2, 2)),
        "BatchNorm3d without state": Layer((4,), (4, 2, 1, 3), dict(affine=False, track_running_stats=False)),
    },
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "8x6x5x5", "batch_norm with statistics"),
        Smoke("bf16 fp16", "300x129", "batch_norm with statistics"),
        Smoke("bf16 fp32", "2x64x7x7", "batch_norm with statistics", channels_last=True),
        Smoke("bf16 fp32 fp16 fp64", "32x64x14x14", "batch_norm with statistics", channels_last=True),
        Smoke("bf16 fp64", "4x3x200x201", "batch_norm with statistics"),  # split
        Smoke("bf16 fp16", "8x6x5x5", "batch_norm in evaluation"),
        Smoke("fp32", "4x64x14x14", "batch_norm in evaluation", channels_last=True),
    ),
    measured=MEASURED,
)
