"""LayerNorm: rows of language models, and the rows where kernels lose."""

import torch

from .case import DTYPES, LEDGER_ELEMENTS, Case, Operation

NAME = "layer_norm"

LANGUAGE = (  # up to 32 Ki tokens; the widths of small models to the widest, and further
    (32768, 256),
    (32768, 512),
    (16384, 768),
    (16384, 1024),
    (16384, 2048),
    (16384, 4096),
    (8192, 8192),
    (4096, 16384),
    (4096, 32768),
    (1024, 65536),
    (1024, 131072),
)
UNEVEN = (  # Llama-2 13B, DeepSeek-V3, MLPs, GPT-3
    (16384, 5120),
    (8192, 5120),
    (16384, 7168),
    (8192, 11008),
    (8192, 12288),
    (1024, 12288),
)
VISION = ((401408, 96), (100352, 192), (25088, 384), (12608, 768))  # ConvNeXt-T and ViT-B, 64 or 128 images
AWKWARD = (
    (1, 4096),
    (8, 768),
    (64, 1024),
    (65536, 64),
    (262144, 128),
    (131072, 128),
    (4097, 1000),
    (3333, 1001),
    (333, 50257),
)
# Of which the compiled code is executed: above 1 MiB, and no fewer rows than a tile has
EXECUTED = (
    (1056, 4096),
    (2112, 1024),
    (4096, 128),
    (1024, 768),
    (132, 5120),
    (132, 8192),
    (66, 12288),
    (66, 16384),
    (32, 32768),
    (16, 65536),
    (16, 73728),
)
OTHER_DTYPES = ((16384, 768), (16384, 4096), (4096, 16384), (1024, 65536), (100352, 192), (8, 768))


def layer(library, case, **options):
    return library.LayerNorm(case.shape[-1], **options).train(case.training)


def shapes():
    for origin, group in (
        ("language", LANGUAGE),
        ("uneven width", UNEVEN),
        ("vision", VISION),
        ("small or awkward", AWKWARD),
    ):
        yield from ((origin, shape) for shape in group)


OPERATION = Operation(
    name=NAME,
    layer=layer,
    # x, y; dy, x, dx; both; x, y
    passes={"forward": 2, "backward": 3, "forward+backward": 5, "evaluation": 2},
    ledger=tuple(
        Case(NAME, (LEDGER_ELEMENTS // cols, cols)) for cols in (4096, 16384, 32768, 65536, 1024, 256)
    ),
    static=tuple(
        Case(NAME, (4096, cols), dtype)
        for dtype in DTYPES.values()
        for cols in (4096, 65536, 768, 64, 1024, 5120, 8192, 12288, 16384, 32768, 131072)
    ),
    instructions=(
        *(Case(NAME, shape) for shape in EXECUTED),
        Case(NAME, (264, 4096), torch.float32),
    ),
    host=(Case(NAME, (8, 768)),),
    speed=(
        *(Case(NAME, shape, origin=origin) for origin, shape in shapes()),
        *(Case(NAME, shape, torch.float32, origin="float32") for shape in OTHER_DTYPES),
        *(Case(NAME, shape, torch.float16, origin="float16") for shape in OTHER_DTYPES),
    ),
)
