"""Tables that commands print: at most 100 columns, nothing in them lost."""

import importlib
import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import __main__
from bench.harness import result_files, tables

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench/results/no-gpu"
LONG = "batch_norm+add+silu bf16 32x64x56x56 channels_last evaluation"
TABLES = ("grids", "chain")  # of the other commands that print one
GRAPHED = dict(device_us=[1234.5] * 5, end_to_end_us=[1234.5] * 5)


def launched(kernel, **counts):
    return dict(kernel=kernel, grid=[132, 1024], **counts)


# records as wide as they come, of parts without committed results
MADE_UP = {
    "host": [
        dict(
            operation="batch_norm",
            case=LONG,
            direction="forward, no gradient",
            samples_us=dict.fromkeys(("normreg", "plain launch", "torch"), [1234.5] * 3),
            parts_us=dict.fromkeys(
                ("dispatch", "autograd", "launcher", "allocations", "launches"), [1234.5] * 3
            ),
        ),
        dict(
            operation="fused_calls",
            case="12 blocks",
            direction="evaluation",
            samples_us=dict.fromkeys(("unfused", "fused whole", "each block fused"), [12345.0] * 3),
        ),
    ],
    "static": [
        dict(
            launched("prenorm_dropout_add_norm_backward_tiles_kernel", target="gfx942", registers=255),
            spill_bytes=1024,
            shared_bytes=65664,
            widest_access_bytes=16,
            barriers=38,
            instructions_per_element=1111.6,
        )
    ],
    "grids": [
        launched(
            "prenorm_dropout_add_norm_backward_tiles_kernel", case=LONG, tiles=16384, multiprocessors=132
        )
    ],
    "speed": [
        dict(
            operation="batch_norm",
            case=LONG,
            peer=peer,
            times=dict(forward=GRAPHED, backward=GRAPHED),
            copy_gb_per_s=4000.0,
            least_bytes=dict(forward=2_000_000, backward=2_000_000),
        )
        for peer in ("normreg", "torch.compile max-autotune")
    ],
    "models": [
        dict(
            case="Transformer encoder, GPT-2 medium, input 8x1024",
            variant=variant,
            layers_replaced=123,
            step_ms=[1234.56] * 5,
            peak_bytes=2**36,
            kept_bytes=2**36,
            error="RuntimeError: no compiler",
            loss_error=None,
            loss_difference=1e-6,
            loss_yardstick=1e-6,
        )
        for variant in ("torch.nn", "normreg, fused blocks")
    ],
}


def printed(part):
    """The table that `python -m bench <part>` prints of the committed records, or of made up ones."""
    module = importlib.import_module(__main__.HOMES.get(part, f"bench.perf.{part}"))
    runs = [run for found in result_files.load(RESULTS, part).values() for run in found]
    return module.table(result_files.records_of(runs) or MADE_UP[part])


@pytest.mark.parametrize("part", [*__main__.PARTS, *TABLES])
def test_every_table_fits_100_columns(part):
    lines = printed(part).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) > 3


WORDS = {
    "ledger": (
        "moved:",
        "least:",
        "ratio:",
        "A case is",
        "A launch is",
        "small up to 1 MiB",
        "taken as cached",
    ),
    "host": ("plain launch us:", "dispatch decides", "rest is", "fused by itself"),
    "static": ("variants:", "spill:", "access:", "instr./element:"),
    "instructions": ("sectors/B:", "passes:", "issue us", "pipe us:", "largest:"),
    "exactness": ("1 is as exact as torch", "Behind ± is", "constant:"),
    "grids": ("tiles:", "grid:"),
}


@pytest.mark.parametrize("part", WORDS)
def test_a_table_explains_its_words(part):
    text = " ".join(printed(part).split())
    assert [word for word in WORDS[part] if word not in text] == []


def test_a_name_is_whole_where_there_is_room():
    """A line is broken at spaces, and within a name only where it is wider than the column."""
    names = "layer_norm_forward_tiles rms_norm_forward_tiles"
    lines = tables.text(("launches", "case"), [(names, LONG * 2), (names, LONG)]).splitlines()
    assert all(name in "\n".join(lines) for name in names.split())


@pytest.mark.parametrize("grouped", [0, 1, 2])
def test_what_wraps_is_whole(grouped):
    """Every letter of every cell is there, in its column, whichever cells are wide."""
    rows = [
        (LONG, "kernel_of_some_length " * 9, str(n), "encoder.layers.0.self_attn.out_proj, " * 5)
        for n in range(3)
    ]
    headers = ("case", "launches of the kernel", "a number with a long header", "names")
    lines = tables.text(headers, rows, grouped).splitlines()
    assert max(map(len, lines)) <= 100
    (rule,) = (line for line in lines if set(line) == {"-", " "})
    starts = [0, *(i + 2 for i in range(len(rule)) if rule.startswith("  ", i)), 102]
    below = lines[lines.index(rule) + 1 :]
    for column, start, end in zip(range(grouped, 4), starts, starts[1:]):
        letters = "".join("".join(line[start : end - 2].split()) for line in below)
        assert letters.count("".join(rows[0][column].split()) if column != 2 else "0") >= 1


def test_numbers_are_flush_right_and_short_headers_stand_below():
    assert tables.text(("name", "of bytes"), [("a", 1), ("b", 10.5)]).splitlines() == [
        "name  of bytes",
        "----  --------",
        "a            1",
        "b         10.5",
    ]


def test_what_the_demo_cannot_measure_is_one_sentence(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", ""))
    rich = pytest.importorskip("rich.console")
    comparisons = pytest.importorskip("bench.demo.comparisons")
    monkeypatch.setattr(comparisons, "DEVICE", "cpu")
    monkeypatch.setattr(comparisons, "kernel_launches", lambda model, data: (8, 2))
    printed = io.StringIO()
    console = rich.Console(file=printed, highlight=False, width=100)
    assert comparisons.show_cost(console, {"normreg": SimpleNamespace(model=None)}, None)
    assert printed.getvalue() == (
        "normreg's kernels launched: 8 a training step, 2 an evaluation\n"
        "time per step and peak memory: not measured, because there is no GPU\n\n"
    )
