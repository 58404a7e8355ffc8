"""The machine code of every kernel, compiled ahead of time without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from bench.operations import OPERATIONS

ROOT = Path(__file__).parent.parent
# The compiler of the pinned Triton keeps nothing on the stack; that of 3.9 two registers' worth in a few
# kernels of the hundreds, and more in these, most where 64 registers hold 64 numbers, on sm_100.
PINNED = triton.__version__.startswith("3.7.")
SPILL_BYTES = {
    "dropout_add_norm_forward_parts_kernel": 168,
    "layer_norm_forward_parts_kernel": 48,
    "layer_norm_backward_parts_kernel": 20,
    "layer_norm_backward_kernel": 16,
}


def merges(row):
    """Whether a launch loads nothing but partial results, of 8 bytes, of any number of channels."""
    finish = row["kernel"] == "batch_norm_backward_kernel" and "evaluation" in row["case"]
    return finish or row["kernel"] == "group_norm_backward_merge_kernel"


def compiled(*arguments):
    """Rows of `python -m bench static`, in a process that compiles kernels where this one interprets them."""
    command = [sys.executable, "-m", "bench", "static", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_compiles_without_spills_and_with_16_byte_accesses(dtype):
    rows = compiled("--dtypes", dtype)
    assert {row["target"] for row in rows} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    of_16_bits = {"layer_norm_backward_parts_kernel"} if dtype == "bf16" else set()
    assert {row["kernel"] for row in rows} == of_16_bits | {
        "layer_norm_forward_kernel",
        "layer_norm_forward_parts_kernel",
        "layer_norm_forward_chunked_kernel",
        "layer_norm_backward_kernel",
        "layer_norm_backward_sums_kernel",
        "layer_norm_backward_finish_kernel",
        "batch_norm_statistics_kernel",
        "batch_norm_normalize_kernel",
        "batch_norm_inference_kernel",
        "batch_norm_backward_sums_kernel",
        "batch_norm_backward_kernel",
        "batch_norm_held_kernel",
        "batch_norm_held_backward_kernel",
        "group_norm_forward_kernel",
        "group_norm_backward_kernel",
        "group_norm_normalize_kernel",
        "group_norm_backward_sums_kernel",
        "group_norm_backward_merge_kernel",
        "group_norm_backward_input_kernel",
        "dropout_kernel",
        "dropout_grouped_kernel",
        "dropout_add_kernel",
        "dropout_add_backward_kernel",
        "dropout_add_norm_forward_kernel",
        "dropout_add_norm_forward_parts_kernel",
        "dropout_add_norm_backward_kernel",
        "bias_act_dropout_forward_kernel",
        "bias_act_dropout_backward_kernel",
    }
    assert {row["operation"] for row in rows} == set(OPERATIONS)
    for row in rows:
        widest = 8 if row["target"] == "gfx942" else 16  # 64 lanes a warp to spread a small tile over
        assert row["spill_bytes"] <= (0 if PINNED else SPILL_BYTES.get(row["kernel"], 8)), row
        if merges(row):
            widest = 8
        assert row["widest_access_bytes"] >= widest, row
        # two programs of 256 threads a multiprocessor, of which AMD's has twice the registers; or one
        programs = 1 if row["kernel"] == "layer_norm_backward_parts_kernel" else 2
        registers = (512 if row["target"] == "gfx942" else 256) // programs
        # 3.9 takes 134 of sm_100 for the sums of BatchNorm with GELU, whose programs have 128 threads
        assert row["registers"] <= registers + (0 if PINNED else 8), row
        # a row of 8192 with its copies ahead: registers leave room for one program a multiprocessor anyway
        shared = 66 if row["kernel"] == "layer_norm_backward_kernel" else 48
        assert row["shared_bytes"] <= shared * 1024, row
    # which take a subnormal variance for 0
    assert not [row for row in rows if row["approximate_roots"]]
    # x and dy of the next tile of rows are on their way while one is computed; gfx942 has no such copies
    in_flight = {
        row["copies_in_flight"] > 0
        for row in rows
        if row["kernel"] == "layer_norm_backward_kernel"
        and row["operation"] != "layer_norm_channels"
        and row["target"] != "gfx942"
    }
    assert in_flight == {dtype == "bf16"}
    alone = ("dropout_kernel", "dropout_grouped_kernel")
    assert all(row["narrowest_access_bytes"] == 16 for row in rows if row["kernel"] in alone)


def test_other_dtypes_compile():
    rows = compiled("--targets", "sm_90", "--dtypes", "fp16", "fp64")
    assert len(rows) > 80
    assert all(row["widest_access_bytes"] == 16 for row in rows if not merges(row))
