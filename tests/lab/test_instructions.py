"""Limits on the instructions of compiled kernels: in the committed counts, and in code executed here."""

from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from instruction_limits import LIMITS, PASSES, SECTORS

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


def committed(part="instructions"):
    machine = ROOT / "bench/results/no-gpu"
    return [record for runs in load(machine, part).values() for record in records_of(runs)]


OURS_COMMITTED = [record for record in committed() if record["peer"] == OURS]


def limited(record):
    """The name of a record's limits: some activations, and rows that are not held, take more than others."""
    wide = any(cols in record["case"] for cols in ("x32768", "x65536", "x73728"))
    more = " gelu" * ("gelu" in record["case"]) + " wide" * wide
    more += " act" * (record["operation"] == "group_norm_act")
    return record["kernel"].removesuffix("_kernel") + more


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
