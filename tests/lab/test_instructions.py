"""Limits on the instructions of compiled kernels: in the committed counts, and in code executed here."""

from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from bench import lab
from bench.harness.result_files import load, records_of
from bench.operations import OPERATIONS, cases
from bench.operations.case import SHORT
from bench.perf import instructions, static
from bench.perf.contest import Subject
from bench.perf.instructions.gpu_model import H100
from bench.perf.instructions.tables import lanes_per_element, passes, sectors_over_bytes
from bench.perf.peers import OURS, PEERS, Peer

ROOT = Path(__file__).parents[2]
PINNED = triton.__version__.startswith("3.7.")  # counts depend on the compiler

# Lane instructions an element of the case, at most: a tenth above the worst that Triton 3.7 makes for sm_90
LIMITS = {
    "batch_norm_backward": 21,
    "batch_norm_backward gelu": 40,
    "batch_norm_backward_sums": 34,
    "batch_norm_backward_sums gelu": 39,
    "batch_norm_tile": 32,
    "batch_norm_tile_backward": 27,
    "batch_norm_inference": 18,
    "batch_norm_normalize": 25,
    "batch_norm_normalize gelu": 28,
    "batch_norm_statistics": 21,
    "batch_norm_statistics gelu": 14,
    "bias_act_dropout_backward": 41,
    "bias_act_dropout_backward gelu": 49,
    "bias_act_dropout_forward": 29,
    "bias_act_dropout_forward gelu": 39,
    "dropout": 34,
    "dropout_add": 30,
    "dropout_add_backward": 30,
    "dropout_add_norm_backward": 70,
    "dropout_add_norm_backward wide": 87,
    "dropout_add_norm_forward": 47,
    "dropout_add_norm_forward_tiles": 40,
    "dropout_add_norm_forward_tiles wide": 50,
    "dropout_grouped": 22,
    "gated_norm_backward": 56,
    "gated_norm_forward": 37,
    "group_norm_backward": 34,
    "group_norm_backward_input": 18,
    "group_norm_backward_merge": 7,
    "group_norm_backward_sums": 24,
    "group_norm_forward": 30,
    "group_norm_normalize": 11,
    "layer_norm_backward": 51,
    "layer_norm_backward wide": 51,
    "column_sums": 21,
    "column_sums gelu": 3.3,
    "column_sums wide": 49,
    "layer_norm_backward_tiles": 34,
    "layer_norm_backward_sums": 18,
    "layer_norm_backward_sums wide": 16,
    "layer_norm_forward": 35,
    "layer_norm_forward_chunks": 21,
    "layer_norm_forward_chunks wide": 22,
    "layer_norm_forward_tiles": 19,
    "layer_norm_forward_tiles wide": 26,
    "layer_norm_backward_held": 48,
    "layer_norm_backward_wide": 31,
    "layer_norm_backward_wide wide": 40,
    # an element of queries and one of keys
    "qk_norm_backward": 99,
    "qk_norm_forward": 58,
}
# Sectors over bytes of launches that move more than 1 MiB, at most, where it is more than 1.05
SECTORS = {
    # 420 channels, channels last: positions begin within sectors
    "batch_norm_statistics": 1.21,
    "batch_norm_normalize": 1.11,
    "batch_norm_backward_sums": 1.18,
    "batch_norm_backward": 1.12,
    # 56 positions a channel: so do channels, and what follows them has bits of its own in bytes
    "batch_norm_tile": 1.16,
    "batch_norm_tile_backward": 1.15,
    # 16 of 56 positions a channel, which begin within sectors; statistics of rows, 12 bytes apart
    "layer_norm_forward": 1.75,
    "layer_norm_backward": 1.4,
    # groups of 16 elements, a sector, with statistics of their own
    "group_norm_forward": 1.23,
    "group_norm_backward": 1.18,
    # heads of 64 elements, 4 sectors, whose statistics are 12 bytes apart
    "qk_norm_forward": 1.2,
}
# Passes over shared memory a request, at most, where they are more than one: 16 bytes a lane take 4
PASSES = {
    "batch_norm_backward": 9.8,
    "batch_norm_backward_sums": 6.5,
    "batch_norm_normalize": 9.8,
    "batch_norm_statistics": 7.2,
    "bias_act_dropout_backward": 4.4,
    "bias_act_dropout_backward gelu": 4.4,
    "dropout_add": 2.8,
    "dropout_add_backward": 15.8,
    "dropout_add_norm_backward": 11,
    "dropout_add_norm_backward wide": 11,
    "gated_norm_backward": 5.6,
    "gated_norm_forward": 1.4,
    "group_norm_backward": 7.9,
    "group_norm_backward_merge": 2.6,
    "layer_norm_backward": 7.2,
    "layer_norm_backward wide": 7.7,
    "column_sums": 5.6,
    "column_sums gelu": 4.8,
    "column_sums wide": 4.8,
    "layer_norm_backward_held": 3.2,
    "layer_norm_backward_tiles": 4.0,
    "layer_norm_backward_sums": 4.1,
    "layer_norm_forward": 6.5,
    "layer_norm_forward_chunks": 4.1,
    "layer_norm_backward_wide": 3.6,
    "layer_norm_backward_wide wide": 3.4,
    "qk_norm_backward": 9.1,
}


def committed(part="instructions"):
    machine = ROOT / "bench/results/no-gpu"
    return [record for runs in load(machine, part).values() for record in records_of(runs)]


OURS_COMMITTED = [record for record in committed() if record["peer"] == OURS]


def limited(record):
    """The name of a record's limits: erf, and rows that are not held, take more than the others."""
    wide = any(cols in record["case"] for cols in ("x32768", "x65536", "x73728"))
    return record["kernel"].removesuffix("_kernel") + " gelu" * ("gelu" in record["case"]) + " wide" * wide


def within_limits(record, room=1.0):
    name = limited(record)
    assert lanes_per_element(record) <= room * LIMITS[name], record
    if record["moved_bytes"] > 2**20:
        assert sectors_over_bytes(record) <= SECTORS.get(name, 1.05), record
    assert passes(record) <= PASSES.get(name, 1.0), record


def test_every_case_and_every_kernel_of_static_is_committed():
    assert {record["case"] for record in OURS_COMMITTED} == set(map(str, cases("instructions")))
    counted = {name for name, operation in OPERATIONS.items() if operation.instructions}
    assert {record["operation"] for record in OURS_COMMITTED} == counted
    compiled = {
        noted.kernel.__name__
        for case in cases("static", counted)
        if SHORT[case.dtype] == "bf16"
        for noted in static.launches(case)
    }
    assert {record["kernel"] for record in OURS_COMMITTED} == compiled
    assert {limited(record) for record in OURS_COMMITTED} == set(LIMITS)


@pytest.mark.parametrize("name", LIMITS)
def test_committed_counts_are_within_limits(name):
    own = [record for record in OURS_COMMITTED if limited(record) == name]
    for record in own:
        within_limits(record)
        assert record["model"]["what"] == "a model, not a measurement"
    # a limit that nothing comes near says nothing
    assert max(map(lanes_per_element, own)) > LIMITS[name] / 1.25


# Code that is executed now

SMALL = [
    case
    for case in cases("instructions")
    if str(case)
    in (
        "dropout bf16 256x4096",
        "Dropout2d bf16 4x64x56x56 channels_last",
        "dropout+add bf16 1024x1024",
        "rms_norm bf16 66x16384",
        "layer_norm bf16 4096x128",
        "group_norm bf16 4x64x64x64",
        "batch_norm bf16 32x512x7x8",
    )
]


@pytest.fixture(scope="module")
def host():
    """The lab's GPU of this session; module scope sets it up before memory is guarded."""
    return triton.runtime.driver.active


@pytest.fixture(scope="module", params=SMALL, ids=str)
def executed(request, host):
    return list(instructions.measure(Subject(request.param, "cpu"), PEERS[0], host))


def test_what_is_executed_now_is_what_is_committed(executed, host):
    assert executed
    for record in executed:
        within_limits(record, room=1.0 if PINNED and host.arch == 90 else 1.5)
    if PINNED and host.arch == 90:
        own = [record for record in OURS_COMMITTED if record["case"] == executed[0]["case"]]
        assert [without_version(record) for record in executed] == [without_version(one) for one in own]


def without_version(record):
    return {name: value for name, value in record.items() if name not in ("version", "error")}


@triton.jit
def copy_kernel(x_ptr, y_ptr, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at * STRIDE))


@triton.jit
def exponentials_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    for _ in tl.static_range(64):
        x = tl.exp2(x)
    tl.store(y_ptr + at, x)


def described(kernel, host, x, y, **constants):
    with lab.counted(host) as launches:
        kernel[(y.numel() // 1024,)](x, y, **constants, BLOCK=1024, enable_fp_fusion=True)
    return instructions.described(launches[0], host) | dict(elements=y.numel())


@pytest.mark.parametrize(("stride", "ratio"), [(1, 1.0), (2, 4.5), (16, 4.5)])
def test_accesses_that_are_not_coalesced_show(host, stride, ratio):
    """A thread loads four neighbours, or with a stride one by one, 4 bytes of each sector."""
    x, y = torch.randn(4096 * stride), torch.empty(4096)
    record = described(copy_kernel, host, x, y, STRIDE=stride)
    assert torch.equal(y, x[::stride])
    assert record["moved_bytes"] == 2 * 4 * 4096
    assert sectors_over_bytes(record) == ratio


def test_a_kernel_that_computes_is_bound_by_what_it_computes_with(host, monkeypatch):
    monkeypatch.setitem(instructions.MODELS, host.arch, H100)
    record = described(exponentials_kernel, host, torch.randn(4096), torch.empty(4096))
    assert record["model"]["larger"] == record["model"]["pipe"] == "mufu"
    assert lanes_per_element(record, "mufu") == 64


# Peers


def peer_of(adapt, **changes):
    return Peer("peer", adapt, **changes)


def refused(host, adapt, **changes):
    case = OPERATIONS["dropout"].instructions[0]
    (record,) = instructions.measure(Subject(case, "cpu"), peer_of(adapt, **changes), host)
    return record["refused"]


def not_there(operation, layer):
    import no_such_package  # noqa: F401


def test_what_cannot_be_counted_of_a_peer_is_said(host):
    assert refused(host, not_there, package="no_such_package") == "not installed"
    assert refused(host, not_there) == "ModuleNotFoundError: No module named 'no_such_package'"
    assert "launched none" in refused(host, lambda operation, layer: layer)
    case = OPERATIONS["dropout"].instructions[0]
    subject = Subject(case, "cpu")
    assert list(instructions.measure(subject, peer_of(lambda operation, layer: None), host)) == []


def test_wrong_results_are_not_counted(host):
    launches = dict(forward=[1], backward=[1])
    assert instructions.refusal(PEERS[0], 1e-3, launches, 1e-4) is None
    assert instructions.refusal(PEERS[0], 1e-3, launches, 0.5) == "differs from float64 by 5.0e-01"
    assert "float64 by nan" in instructions.refusal(PEERS[0], 1e-3, launches, float("nan"))
    records = [dict(peer=OURS, refused="differs"), dict(peer="peer", refused="not installed")]
    assert [instructions.status(records), instructions.status(records[1:])] == [1, 0]
