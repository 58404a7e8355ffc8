"""RMSNorm: the rows of LayerNorm."""

from dataclasses import replace

import torch

from . import layer_norm
from .calls import over_planes, over_rows
from .case import in_float_dtypes
from .operation import Function, Layer, Operation, Smoke

OPERATION = Operation(
    name="rms_norm",
    kernels="layer_norm",
    over="rows",
    kept=lambda x, training: 4 * x.shape[0],
    functions={
        "rms_norm": Function(over_rows, ((4, 5), (5,))),
        "rms_norm over two dimensions": Function(over_planes, ((2, 3, 2), (3, 2))),
        "rms_norm of one row": Function(over_rows, ((6,), (6,))),
        "rms_norm without weight": Function(over_rows, ((3, 5),)),
    },
    layers={
        "RMSNorm": Layer((6,), (6,)),
        "RMSNorm of three dimensions": Layer((4,), (2, 3, 4)),
    },
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "768"),
        Smoke("bf16", "5120"),
        Smoke("fp32", "1025"),
        Smoke("bf16", "131072"),
    ),
    # LayerNorm's kernels are not looked at twice at each of its widths
    measured=replace(
        layer_norm.MEASURED,
        torch_layer=lambda case, **options: torch.nn.RMSNorm(case.shape[-1], **options),
        ledger="2112x4096, 528x16384, 2112x24576, 132x65536, 264x4096, 16384x4096, 16896x512 sliced",
        static="4096x4096, 4096x65536, 4096x64, 4096x16384, 4096x24576, 4096x49152",
        instructions="1056x4096, 2112x1024, 2112x512 sliced, 66x16384, 264x24576, fp32 264x4096",
        exactness=in_float_dtypes("128x768") + ", fp32 128x4096",
    ),
)
