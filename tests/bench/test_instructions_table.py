"""Tables, pages and a GPU model made from counted instructions, and what peers are told of the GPU."""

import pytest
import torch

from bench.harness import result_files
from bench.lab import without_gpu
from bench.perf.instructions import gpu_model
from bench.perf.instructions import tables as instructions_table
from bench.perf.instructions.gpu_model import H100
from bench.perf.peers import OURS
from bench.report import instructions as page_of_instructions

# The model


def test_the_room_of_an_h100():
    """An H100 has room for 9.5 lane instructions a byte moved."""
    assert 9.5 <= H100.room() < 9.6
    moved = 10**9
    by_class = {"alu": H100.room() * moved / 32}
    assert H100.issue_us(by_class) == pytest.approx(H100.memory_us(moved))


@pytest.mark.parametrize(
    ("moved", "by_class", "larger"),
    [
        (3_000_000, dict(fma=1000), "memory"),
        (0, dict(fma=1000), "issue"),  # 128 lanes a clock are what four schedulers issue
        (0, dict(fma=1000, alu=1000), "issue"),
        (0, dict(fma=1000, mufu=1000), "mufu"),
        (0, dict(fp64=1000), "fp64"),
    ],
)
def test_the_larger_term(moved, by_class, larger):
    terms = gpu_model.terms(H100, moved, by_class)
    assert terms["larger"] == larger
    assert terms["memory_us"] == pytest.approx(moved / 3e12 * 1e6)
    clocks = 32 * sum(by_class.values()) / 128
    assert terms["issue_us"] == pytest.approx(clocks / (132 * 1.7e9) * 1e6, abs=1e-6)
    if larger == "mufu":
        assert terms["pipe_us"] == pytest.approx(4 * terms["issue_us"], abs=1e-5)


# Peers


def programs(x):
    if x.device.type == "cuda":
        return torch.cuda.get_device_properties(x.device).multi_processor_count
    return 1


def test_peers_see_a_gpu(monkeypatch):
    """A peer that asks whether a tensor is on CUDA takes the same branch for a CPU tensor."""
    monkeypatch.setitem(without_gpu.ASK_FOR_CUDA, "bench", (f"{__name__}.programs",))
    before = programs
    with without_gpu.seen_by_peers("bench"):
        assert programs(torch.zeros(1)) == 132
        assert torch.cuda.get_device_capability() == (9, 0)
    assert programs is before
    assert programs(torch.zeros(1)) == 1
    with pytest.raises(ValueError, match=r"expected device\.type"):
        without_gpu.taking_the_cpu_for_cuda(made_up)


# Tables


def made_up(kernel, counts, dram_bytes, **changes):
    record = dict(operation="layer_norm", case="wide", peer=OURS, version="1", direction="forward", launch=0)
    record |= dict(kernel=kernel, arch="sm_90", elements=3200, error=0.001, dram_bytes=dram_bytes)
    record |= dict(moved_bytes=6400, sectors=300, shared_requests=10, shared_wavefronts=15)
    return record | dict(warp_instructions=counts, model=gpu_model.terms(H100, dram_bytes, counts)) | changes


MEMORY = made_up("copy_kernel", dict(fma=100, lsu=100), 6400)
BUSY = made_up("busy_kernel", dict(fma=1000, mufu=1000), 6400, direction="backward")
SLIGHT = made_up("slight_kernel", dict(mufu=20), 1, direction="backward", launch=1)
PEERS_OWN = made_up("their_kernel", dict(fma=300), 12800, peer="peer")
REFUSED = dict(operation="layer_norm", case="wide", peer="other", version=None, refused="not installed")


def cells(table, first):
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_a_row_a_launch_and_what_was_not_counted():
    table = instructions_table.table([MEMORY, PEERS_OWN, REFUSED])
    counts, classes = (
        [line.split() for line in part.splitlines() if line.startswith("  ")]
        for part in table.split("by class:")
    )
    assert counts[0][:5] == ["copy", "2.00", "1.50", "1.50", "2.0"]
    assert counts[0][-1] == "memory"
    assert [row[0] for row in counts] == [row[0] for row in classes[:2]] == ["copy", "their"]
    assert f"wide, {OURS}, forward" in table.splitlines()
    assert "Not counted, because they are not installed: other." in table
    assert "Not counted:" not in table
    without = instructions_table.table([MEMORY | dict(model=None)])
    (row, _) = (line.split() for line in without.splitlines() if line.startswith("  copy"))
    assert row.count("-") == 4


def test_worst_are_ours_that_memory_does_not_bound():
    less = BUSY | dict(case="narrow", dram_bytes=10**6)
    less["model"] = gpu_model.terms(H100, 10**6, dict(fma=1000, mufu=1000))
    table = instructions_table.worst([MEMORY, less, BUSY, SLIGHT, PEERS_OWN | BUSY | dict(peer="peer")])
    assert len(table.splitlines()) == 2 + 2
    assert cells(table, "**busy**")[1:] == [""] * 6
    row = cells(table, "backward: wide")
    assert row[1:3] == ["98%", "10.0"]
    assert row[-1] == "mufu"


def test_peers_stand_beside_ours_call_by_call():
    table = instructions_table.beside_peers([MEMORY, BUSY, SLIGHT, PEERS_OWN, REFUSED])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert [row[1:7] for row in rows] == [
        ["forward", OURS, "1", "2.00", "3.00", "2.0"],
        ["backward", OURS, "2", "2.00", "6.00", "20.2"],
        ["forward", "peer", "1", "4.00", "3.00", "3.0"],
    ]
    assert instructions_table.beside_peers([MEMORY, REFUSED]) is None


def test_the_page_has_every_launch_below_its_case(tmp_path):
    results = tmp_path / "bench/results"
    environment = dict(date="2026-11-28", commit="0123", gpu=None, torch="2", triton="3", python="3")
    result_files.write(results / "no-gpu", "instructions", [MEMORY, BUSY, SLIGHT, REFUSED], [], environment)
    page = page_of_instructions.section(results)
    assert "a model, not a measurement" in page
    assert "room for 9.6 lane instructions a byte moved" in " ".join(page.split())
    assert cells(page, "backward: wide")[-1] == "mufu"
    launches = page.partition("## layer_norm")[2].split("<details>")[1]
    firsts = [line.strip("|").split("|")[0].strip() for line in launches.splitlines()[4:] if line[:1] == "|"]
    assert firsts == ["**wide**", "forward: copy", "backward: busy", "backward: slight"]
    assert cells(launches, "forward: copy")[1:5] == ["2.00", "1.50", "1.50", "2.0"]
    assert page.count("not installed: other.") == 1
