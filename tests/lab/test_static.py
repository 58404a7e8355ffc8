"""The machine code of every kernel, compiled without a GPU: a test an operation, dtype and GPU."""

import pytest
import triton
from support.sources import kernels

from bench import lab
from bench.operations import OPERATIONS
from bench.operations.case import DTYPES
from bench.perf import static

# The compiler of the pinned Triton keeps nothing on the stack; that of 3.9 two registers' worth in a few
# kernels of the hundreds, and more in these, most where 64 registers hold 64 numbers, on sm_100.
PINNED = triton.__version__.startswith("3.7.")
SPILL_BYTES = {
    "dropout_add_norm_forward_tiles_kernel": 168,
    "layer_norm_forward_tiles_kernel": 48,
    "layer_norm_backward_tiles_kernel": 20,
    "layer_norm_backward_kernel": 16,
}
WITHOUT_CASES = {  # of ranks, of running statistics, which no case keeps, and in test_float8_compiled.py
    "layer_norm_float8_kernel",
    "layer_norm_float8_tiles_kernel",
    "instance_norm_running_kernel",
    "sync_batch_norm_backward_pack_kernel",
    "sync_batch_norm_merge_kernel",
    "sync_batch_norm_pack_kernel",
}
KERNELS = {*kernels()} - WITHOUT_CASES
# whose kernels batch_norm and layer_norm have, too
VARIANTS = ("batch_norm_act", "rms_norm", "rms_norm_channels")
SHARED_KIB = {
    "layer_norm_backward_held_kernel": 66,
    "ada_norm_backward_kernel": 81,
    "gated_norm_backward_kernel": 66,
}
OF_16_BITS = {"layer_norm_backward_tiles_kernel", "layer_norm_backward_held_kernel"}
WITH_SUMS = OF_16_BITS | {  # or of half rows
    "ada_norm_backward_kernel",
    "batch_norm_backward_sums_kernel",
    "layer_norm_backward_wide_kernel",
}
ALONE = ("dropout_kernel", "dropout_grouped_kernel")  # which load and store nothing but elements


@pytest.fixture(autouse=True)
def guarded_memory():
    """Guards nothing: nothing is launched, and large tensors need not be written."""


def cases(dtype, operations=OPERATIONS):
    return [c for c in static.cases("static", operations) if c.dtype == DTYPES[dtype]]


def compiled_for(target, dtype):
    """A test an operation; variants, and other targets and dtypes than a Hopper GPU in bfloat16, are slow."""
    fast = [] if (target, dtype) != ("sm_90", "bf16") else {*OPERATIONS}.difference(VARIANTS)
    return [
        pytest.param(
            target, dtype, name, id=f"{target}-{dtype}-{name}", marks=() if name in fast else pytest.mark.slow
        )
        for name in OPERATIONS
        if cases(dtype, [name])
    ]


def rows_of(target, dtype, operation):
    with lab.machine_code():
        return [row for case in cases(dtype, [operation]) for row in static.describe_case(case, [target])]


def merges(row):
    """Whether a launch loads nothing but partial results, of 4 bytes, of any number of channels."""
    finish = row["kernel"] == "batch_norm_backward_kernel" and "evaluation" in row["case"]
    return finish or row["kernel"] in ("group_norm_merge_kernel", "group_norm_backward_merge_kernel")


def most_registers(row, alone):
    """Those that leave a multiprocessor room for 384 threads, or where alone for 256, in whole programs.

    256 threads of float32 have more bytes on their way than 384 of 16 bits.
    """
    of_all = (131072 if row["target"] == "gfx942" else 65536) // 8  # AMD's has twice as many; given out by 8
    programs = triton.cdiv(256 if alone or " fp32 " in row["case"] else 384, row["threads"])
    return of_all // (programs * row["threads"]) * 8


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_cases_reach_every_kernel(dtype):
    launched = {noted.kernel.__name__ for case in cases(dtype) for noted in static.launches(case)}
    assert launched == KERNELS - (OF_16_BITS if dtype == "fp32" else set())


@pytest.mark.parametrize(
    ("target", "dtype", "operation"),
    [p for dtype in ("bf16", "fp32") for target in static.TARGETS for p in compiled_for(target, dtype)],
)
def test_compiles_without_spills_and_with_16_byte_accesses(target, dtype, operation):
    rows = rows_of(target, dtype, operation)
    assert {(row["target"], row["operation"]) for row in rows} == {(target, operation)}
    for row in rows:
        widest = 8 if target == "gfx942" else 16  # 64 lanes a warp to spread a small tile over
        assert row["spill_bytes"] <= (0 if PINNED else SPILL_BYTES.get(row["kernel"], 8)), row
        assert row["widest_access_bytes"] >= (4 if merges(row) else widest), row
        # one program a multiprocessor is enough of rows of channels-first tensors, where more threads have more
        # steps of sums between them, and of channels-last instances: a thread has eight, with statistics each
        over_channels = operation in ("layer_norm_channels", "rms_norm_channels")
        instances = operation == "instance_norm" and row["kernel"] == "group_norm_backward_kernel"
        alone = row["kernel"] in WITH_SUMS or over_channels or instances
        assert row["registers"] <= most_registers(row, alone) + (0 if PINNED else 8), row
        # rows with their copies ahead: registers leave room for one program a multiprocessor anyway, and the
        # least that a GPU of sm_80 or later has is 99 KiB
        shared = SHARED_KIB.get(row["kernel"], 48)
        assert row["shared_bytes"] <= shared * 1024, row
        # approximate roots take a subnormal variance for 0; GELU's are of numbers from 1 on
        assert row["approximate_roots"] == 0 or "gelu" in row["case"], row
        if row["kernel"] in ALONE:
            assert row["narrowest_access_bytes"] == 16, row
        # x and dy of the next tile of rows are on their way while one is computed; gfx942 has no such copies
        ahead = row["kernel"] in ("layer_norm_backward_kernel", "layer_norm_backward_held_kernel")
        if ahead and not over_channels:
            assert (row["copies_in_flight"] > 0) == (dtype == "bf16" and target != "gfx942"), row


@pytest.mark.parametrize(
    ("target", "dtype", "operation"),
    [p for dtype in ("fp16", "fp64") for p in compiled_for("sm_90", dtype)],
)
def test_other_dtypes_compile(target, dtype, operation):
    for row in rows_of(target, dtype, operation):
        assert row["widest_access_bytes"] == 16 or merges(row), row
