"""LayerNorm: rows of language models, and the rows where kernels lose."""

import torch

from .calls import over_planes, over_rows
from .case import each, in_float_dtypes
from .operation import Function, Layer, Measured, Operation, Smoke

OTHER_DTYPES = "16384x768, 16384x4096, 4096x16384, 1024x65536, 100352x192, 8x768"
MEASURED = Measured(
    torch_layer=lambda case, **options: torch.nn.LayerNorm(case.shape[-1], **options),
    # x, y; dy, x, dx; both; x, y
    passes={"forward": 2, "backward": 3, "forward+backward": 5, "evaluation": 2},
    small="fp32 6x40",
    ledger="2112x4096, 528x16384, 2112x32768, 132x65536, 8448x1024, 33792x256, 264x4096, 16384x4096",
    static="4096x4096, 4096x65536, 4096x768, 4096x64, 4096x1024, 4096x5120, 4096x8192, 4096x12288, "
    "4096x16384, 4096x24576, 4096x32768, 4096x131072, 4096x64 sliced, 4096x4096 sliced, "
    "4096x16384 sliced, 4096x32768 sliced",
    # no fewer rows than a tile has
    instructions="1056x4096, 2112x1024, 4096x128, 1024x768, 132x5120, 132x8192, 66x12288, 66x16384, "
    "264x32768, 16x65536, 16x73728, fp32 264x4096, fp32 264x12288",
    exactness=in_float_dtypes("128x768") + ", fp32 128x4096, fp32 4x65536",
    together=lambda t, case: t.flatten(0, -2),
    host="8x768",
    speed={
        # up to 32 Ki tokens; the widths of small models to the widest, and further
        "language": "32768x256, 32768x512, 16384x768, 16384x1024, 16384x2048, 16384x4096, 8192x8192, "
        "4096x16384, 4096x32768, 1024x65536, 1024x131072",
        # Llama-2 13B, DeepSeek-V3, MLPs, GPT-3
        "uneven width": "16384x5120, 8192x5120, 16384x7168, 8192x11008, 8192x12288, 1024x12288",
        # ConvNeXt-T and ViT-B, 64 or 128 images
        "vision": "401408x96, 100352x192, 25088x384, 12608x768",
        "small or awkward": "16384x512 sliced, "
        "1x4096, 8x768, 64x1024, 65536x64, 262144x128, 131072x128, 4097x1000, "
        "3333x1001, 333x50257",
        "float32": each(OTHER_DTYPES, "fp32 {}"),
        "float16": each(OTHER_DTYPES, "fp16 {}"),
    },
)

OPERATION = Operation(
    name="layer_norm",
    kernels="layer_norm",
    over="rows",
    kept=lambda x, training: 3 * 4 * x.shape[0],
    functions={
        "layer_norm": Function(over_rows, ((4, 5), (5,), (5,))),
        "layer_norm over two dimensions": Function(over_planes, ((2, 3, 2), (3, 2), (3, 2))),
        "layer_norm of one row": Function(over_rows, ((6,), (6,), (6,))),
        "layer_norm without parameters": Function(over_rows, ((3, 5),)),
        "layer_norm without bias": Function(over_rows, ((3, 5), (5,))),
    },
    layers={
        "LayerNorm": Layer((6,), (6,)),
        "LayerNorm without parameters": Layer(((3, 4), 1e-5, False), (3, 4)),
    },
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "768"),
        Smoke("bf16 fp32 fp64", "64"),  # several rows a program
        Smoke("bf16 fp32 fp16 fp64", "1025"),  # odd
        Smoke("bf16 fp16", "5120"),  # several tiles
        Smoke("bf16 fp32", "12288"),  # several tiles; float32's backward in chunks
        Smoke("bf16", "65536"),  # several tiles, packed
        Smoke("bf16", "131072"),  # chunks
        Smoke("fp64", "16392"),
    ),
    measured=MEASURED,
)
