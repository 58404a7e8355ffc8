"""The tables of docs/layers: what a program holds, what is kept, and what the ledger counted."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from bench.harness import tables
from bench.harness.result_files import load, records_of
from bench.operations import DECLARED
from bench.report import ledger
from bench.report.machine_page import machines_in
from bench.report.pages import paragraph
from normreg.kernels import tiling
from normreg.kernels.ada_norm import is_held
from normreg.kernels.dtypes import compute_dtype
from normreg.kernels.tiling import rows as of_rows
from normreg.kernels.tiling.rows import Rows

MOST = 2**18  # elements: wider than anything that is held
MANY = 4096  # rows, or positions and groups beside each other
HELD = "What a program holds is read once; what is larger is read twice or more."
COUNTED = paragraph(
    "Launches forward + backward; bytes (B) an element that they move, and the least that any "
    "implementation moves: [how they are counted](../benchmarks/ledger.md)."
)


def largest(holds, dtype, step=8):
    """The largest size, a multiple of `step`, that `holds` says is held; what is larger is not."""
    few, many = 0, MOST // step
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if holds(middle * step, dtype) else (few, middle)
    return few * step


def _covers(tile, apart=False, **options):
    """Whether a row of `tile` is held. apart: rows that do not begin at multiples of 16 bytes."""

    def holds(cols, dtype):
        rows = Rows(1, MANY, cols, False, cols + 1 if apart else None)
        return tile(rows, dtype, **options).covers(rows)

    return holds


def _channels(tile):
    def holds(cols, dtype):
        rows = Rows(8, MANY, cols, True)
        return tile(rows, dtype).covers(rows)

    return holds


def _of_batch(tile, channels_last):
    return lambda n, dtype: tile(1, 64, n, channels_last, compute_dtype(dtype)) is not None


def _of_group(tile):
    return lambda n, dtype: tile(32, 8, n // 8, False, compute_dtype(dtype)) is not None


def _of_rows(forward, backward, **wide):
    both = {"forward": forward, "backward": backward}
    whole = {name: _covers(tile) for name, tile in both.items()}
    again = {"backward, read again from the cache": _is_wide(**wide)} if wide else {}
    apart = {f"{name}, rows not at 16 bytes": _covers(tile, True) for name, tile in both.items()}
    return whole | again | apart


def _is_wide(centered):
    def holds(cols, dtype):
        # one width is taken whose neighbours are not
        sizes = Rows(1, MANY, cols, False), Rows(1, MANY, cols - 8, False)
        return all(of_rows.layer_norm_backward_wide_tile(rows, dtype, centered) for rows in sizes)

    return holds


def _added_backward(rows, dtype):
    return of_rows.dropout_add_norm_backward_tile(rows, compute_dtype(dtype))


@dataclass(frozen=True)
class Page:
    """What a page has of its layers: sizes, bytes kept, and the operations of the ledger."""

    what: str  # whose sizes are held
    held: dict[str, Callable] = field(default_factory=dict)
    ledger: tuple[str, ...] = ()
    kept: str = ""  # the operation whose declaration says it
    unit: str = ""  # what it is kept of


OF_ROWS = functools.partial(Page, "a row", unit="row")
rms_backward = functools.partial(of_rows.layer_norm_backward_tile, centered=False)
batch, groups = tiling.channels, tiling.groups
PAGES = {
    "layer_norm": OF_ROWS(
        _of_rows(of_rows.layer_norm_forward_tile, of_rows.layer_norm_backward_tile, centered=True),
        ("layer_norm",),
        "layer_norm",
    ),
    "rms_norm": OF_ROWS(
        _of_rows(of_rows.layer_norm_forward_tile, rms_backward, centered=False),
        ("rms_norm",),
        "rms_norm",
    ),
    "layer_norm_channels": Page(
        "the channels of a position, contiguous input",
        {
            "forward": _channels(of_rows.layer_norm_forward_tile),
            "backward": _channels(of_rows.layer_norm_backward_tile),
        },
        ("layer_norm_channels", "rms_norm_channels"),
    ),
    "gated_rms_norm": Page(
        "a group",
        {"forward and backward": tiling.modulated.gated_norm_is_held},
        ("rms_norm_gated",),
        "rms_norm_gated",
        "group",
    ),
    "ada_norm": Page("a row", {"forward and backward": is_held}, ("ada_norm",)),
    "qk_norm": Page(
        "a head",
        {"forward and backward": lambda cols, dtype: cols <= tiling.heads.widest(dtype)},
        ("qk_norm",),
    ),
    "float8": Page("a row", {"forward": of_rows.float8_is_held}),
    "batch_norm": Page(
        "a channel",
        {
            "forward": _of_batch(batch.batch_norm_forward_tile, False),
            "backward": _of_batch(batch.batch_norm_backward_tile, False),
            "forward, channels_last": _of_batch(batch.batch_norm_forward_tile, True),
            "backward, channels_last": _of_batch(batch.batch_norm_backward_tile, True),
        },
        ("batch_norm",),
        "batch_norm",
        "channel",
    ),
    "batch_norm_act": Page("a channel", ledger=("batch_norm_act",)),
    "group_norm": Page(
        "a group",
        {
            "forward": _of_group(groups.group_norm_forward_tile),
            "backward": _of_group(groups.group_norm_backward_tile),
        },
        ("group_norm", "group_norm_act"),
    ),
    "instance_norm": Page("an instance", ledger=("instance_norm",)),
    "dropout": Page("", ledger=("dropout",)),
    "dropout_add": Page("", ledger=("dropout_add",)),
    "bias_act_dropout": Page("", ledger=("bias_act_dropout",)),
    "residual_norms": Page(
        "a row",
        _of_rows(of_rows.dropout_add_norm_forward_tile, _added_backward),
        ("dropout_add_norm",),
    ),
}
DTYPES = {16: torch.bfloat16, 32: torch.float32, 64: torch.float64}


def held_table(page):
    rows = [
        (direction, *(f"{largest(holds, dtype):,}" for dtype in DTYPES.values()))
        for direction, holds in page.held.items()
    ]
    return tables.markdown((f"elements of {page.what}, at most", *(f"{bits} bits" for bits in DTYPES)), rows)


def kept_line(page):
    """What declarations say is kept of one unit."""
    x = torch.empty(1, 1, device="meta")
    training, evaluation = (DECLARED[page.kept].kept(x, training) for training in (True, False))
    also = "" if training == evaluation else f", in evaluation {evaluation}"
    return (
        "Kept for the backward beside the input and parameters, for input of 16 or 32 bits: "
        f"{training} bytes a {page.unit}{also}."
    )


def counted(operation, results):
    """The records of the ledger of an operation, of all machines."""
    machines = machines_in(results)
    return records_of([run for machine in machines for run in load(machine, "ledger").get(operation, [])])


def counted_tables(operations, results):
    """A table an operation, of which the cases leave out the name: more than one have it above them."""
    for name in operations:
        cut = name.removesuffix("_act") + "+"
        records = [one | {"case": one["case"].removeprefix(cut)} for one in counted(name, results)]
        yield f"`{name}`:\n\n" * (len(operations) > 1) + ledger.table(None, name, records)


def section(page, results):
    parts = [HELD, held_table(page)] if page.held else []
    parts += [kept_line(page)] if page.kept else []
    if page.ledger:
        parts += [COUNTED, *counted_tables(page.ledger, results)]
    return "\n" + "\n\n".join(parts) + "\n\n"


def overview(results):
    """The first case of each operation."""
    records = [counted(operation, results) for page in PAGES.values() for operation in page.ledger]
    firsts = [one for found in records for one in found if one["case"] == found[0]["case"]]
    return f"\n{COUNTED}\n\n{ledger.table(None, 'overview', firsts)}\n\n"


BLOCKS = {
    f"facts of {name}": (f"docs/layers/{name}.md", functools.partial(section, page))
    for name, page in PAGES.items()
} | {"overview of layers": ("docs/layers/index.md", overview)}
