"""How many multiprocessors of an H100 have a program of each launch of a backward, by rows or samples.

Launches are noted and not made: only their grids are looked at. `tiles` is how many of the tiles that a
program takes at a time the largest tensor fills: with 132 or more there is work for every multiprocessor.
"""

import math

from bench.harness import tables
from bench.lab.bounds import tensors_of
from bench.lab.without_gpu import MULTIPROCESSORS
from bench.operations.case import cases_of
from bench.perf import static

ROWS = 64, 128, 264, 512, 1024, 2112, 4096, 16384
SAMPLES = 1, 2, 4, 8, 16, 32, 64
LARGEST = 2**28  # elements of a case; larger ones are left out
OF_A_TILE = (
    "samples",
    "groups",
    "channels",
    "spatial",
    "rows",
    "cols",
    "tiles",
)  # sizes whose product it holds
# a program takes whole rows, because without partial results no other can help it
BY_ROWS = ("layer_norm_backward_sums_kernel",)
# operations whose backward adds up partial results: their sizes, and the cases of each
SIZES = {
    "layer_norm": {ROWS: "{}x256, {}x1024, {}x4096, {}x16384, {}x65536"},
    "rms_norm": {ROWS: "{}x1024, {}x4096"},
    "layer_norm_channels": {SAMPLES: "{}x96x56x56, {}x96x56x56 channels_last, {}x768x7x7"},
    "group_norm": {
        SAMPLES: "{}x160x32x32, {}x1280x8x8, {}x320x64x64",
        ROWS: "{}x512, {}x128x4x4",
    },
    "instance_norm": {SAMPLES: "{}x64x64x64, {}x64x256x256"},
    "batch_norm": {
        SAMPLES: "{}x64x56x56, {}x64x56x56 channels_last, {}x2048x7x7, {}x2048x7x7 channels_last",
        ROWS: "{}x256, {}x1024",
    },
    "bias_act_dropout": {
        ROWS: "bias+gelu+dropout {}x1024, bias+gelu+dropout {}x4096, bias+relu+dropout {}x1000"
    },
    "dropout_add": {
        ROWS: "scaled dropout+add {}x768, scaled dropout+add {}x4096, scaled dropout+add {}x1000"
    },
    "ada_norm": {
        SAMPLES: "gate+add+adaLN {}x1024x1152, adaLN {}x4096x3072",
        ROWS: "gate+add+adaLN 1x{}x1152, adaLN 1x{}x3072, gate+add+adaLN 1x{}x5120",
    },
    "dropout_add_norm": {
        ROWS: "prenorm dropout+add+LayerNorm {}x1024, prenorm dropout+add+LayerNorm {}x4096, "
        "prenorm dropout+add+LayerNorm {}x65536, dropout+add+RMSNorm {}x1024, dropout+add+RMSNorm {}x4096"
    },
}
OPERATIONS = tuple(SIZES)


def cases_in_sizes(operation):
    """The cases of an operation, from few to many rows of each shape."""
    for sizes, texts in SIZES[operation].items():
        for text in texts.split(", "):
            for size in sizes:
                (case,) = cases_of(operation, text.format(size))
                if math.prod(case.shape) <= LARGEST:
                    yield case


def whole_tiles(noted):
    """How many tiles the largest tensor of a launch fills, or rows where a program takes these."""
    shapes = [tensor.shape for _, tensor in tensors_of(noted.arguments)]
    shape = max(shapes, key=math.prod)
    if noted.kernel.__name__ in BY_ROWS:
        return math.prod(shape[:-1])
    tile = noted.arguments["TILE"]
    return math.prod(shape) // math.prod(getattr(tile, size, 1) for size in OF_A_TILE)


def measure(case):
    """Yields a record for each launch of a case's backward."""
    for noted in static.calls(case)["backward"]:
        if "TILE" in noted.arguments:
            programs = math.prod(noted.grid)
            yield dict(
                operation=case.operation,
                case=str(case),
                kernel=noted.kernel.__name__,
                grid=list(noted.grid),
                tiles=whole_tiles(noted),
                multiprocessors=min(programs, MULTIPROCESSORS),
            )


def add_arguments(parser):
    pass


def run(arguments, budget):
    chosen = [case for name in arguments.operations or OPERATIONS for case in cases_in_sizes(name)]
    for case in budget.within(chosen):
        yield from measure(case)


def table(records):
    headers = "case | kernel | grid | tiles | multiprocessors with a program"
    rows = [
        (
            record["case"],
            record["kernel"].removesuffix("_kernel"),
            "x".join(map(str, record["grid"])),
            record["tiles"],
            record["multiprocessors"],
        )
        for record in records
    ]
    return tables.explained(tables.text(headers, rows, grouped=1), WORDS)


WORDS = (
    "grid: the programs of a launch. tiles: how many of the tiles that a program takes at a time the largest "
    "tensor fills, or its rows where a program takes these: with as many as there are multiprocessors, each "
    "could have one. The last column is the programs, and at most the multiprocessors."
)
CAPTION = f"multiprocessors of {MULTIPROCESSORS} that have a program of each launch of a backward"
