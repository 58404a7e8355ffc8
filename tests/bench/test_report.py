"""Comparisons, tables and reports of machines made from results, and the unpacking of archives."""

import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import blank_pages
import pytest

from bench import report
from bench.gpu_pass import archive, checks
from bench.harness import result_files
from bench.perf.speed import compare

ENVIRONMENT = dict(
    date="2026-11-28T06:25:00+00:00",
    commit="fedcba9876543210",
    gpu="OTHER GPU",
    torch="2.11.0+cu130",
    triton="3.6.0",
    python="3.12.3",
)


def recorded(case, peer, microseconds, **changes):
    times = {"forward": dict(device_us=[microseconds] * 5, end_to_end_us=[10 + microseconds] * 5)}
    record = dict(operation="layer_norm", case=case, peer=peer, times=times, copy_gb_per_s=4000.0)
    record |= dict(kept_bytes=2**19, peak_bytes=2**22, first_call_s=1.5, compilations=3, error=0.001)
    return record | dict(least_bytes={"forward": 2_000_000}) | changes


RECORDS = [
    recorded("wide", "normreg", 1.0),
    recorded("wide", "torch eager", 2.0),
    recorded("wide", "liger-kernel", 1.5),
    recorded("narrow", "normreg", 4.0),
    recorded("narrow", "torch eager", 2.0),
    recorded("narrow", "apex", 9.0, times={}, refused="differs from float64 by 0.5"),
]


def test_speed_up_is_over_the_best_of_the_others_and_losses_are_losses():
    wide, narrow = compare.comparisons(RECORDS)
    assert (wide.best, wide.speed_up, wide.gb_per_s, wide.copy_fraction) == ("liger-kernel", 1.5, 2000, 0.5)
    assert wide.end_to_end_speed_up == 11.5 / 11
    assert (narrow.best, narrow.speed_up) == ("torch eager", 0.5)
    (alone,) = compare.comparisons(RECORDS[:1])
    assert alone.speed_up is None
    assert compare.comparisons(RECORDS[1:2]) == []


STEPS = [
    dict(
        operation="gpt2",
        case="GPT-2, input 8x1024",
        kept_bytes=2**20,
        variant=variant,
        layers_replaced=0,
        step_ms=[milliseconds] * 5,
        peak_bytes=2**30,
        loss_difference=1e-6,
        loss_yardstick=2e-6,
        error=None,
        loss_error=None,
    )
    for variant, milliseconds in (("torch.nn", 30.0), ("normreg", 20.0), ("torch.compile", 24.0))
]


@pytest.fixture
def results(tmp_path, monkeypatch):
    folder = tmp_path / "bench/results"
    environment = ENVIRONMENT | dict(commit="0123456789abcdef", gpu="SOME GPU")
    result_files.write(folder / "SOME-GPU", "speed", RECORDS, ["a wider case"], environment)
    result_files.write(folder / "SOME-GPU", "models", STEPS, [], environment)
    copies = [dict(operation="copy", case="copy", bytes=2**21, gb_per_s=[4000.0, 4001.0])]
    result_files.write(folder / "SOME-GPU", "speed", copies, [], environment)
    blank_pages.write(tmp_path)
    return folder


def run_report(results, packed=None):
    arguments = SimpleNamespace(archive=packed, results=results, root=results.parent.parent)
    return report.run(arguments)


def test_a_report_of_recorded_results(results, tmp_path):
    pytest.importorskip("matplotlib")
    assert run_report(results) == 0
    written = (results / "SOME-GPU/report.md").read_text()
    assert "commit 0123456789ab, SOME GPU" in written
    assert (
        "| wide   | forward   | 1.0 | 1.0-1.0 | 2000 |       50% | liger-kernel | 1.5 |     1.50 |" in written
    )
    assert (
        "| wide   | normreg      |                  0.50 |     4.00 |         1.50 |            3 |"
        in written
    )
    assert "differs from float64 by 0.5" in written
    assert "Left out, because the budget was spent: a wider case" in written
    assert (results / "SOME-GPU/layer_norm.png").stat().st_size > 10_000

    page = (tmp_path / "docs/benchmarks/speed.md").read_text()
    assert page.startswith("# Title\n")
    assert page.endswith("<!-- end of speed -->\nrest\n")
    assert "\nold\n" not in page
    assert "none yet" not in page
    (layer_norm,) = [line for line in page.splitlines() if line.startswith("| SOME GPU | layer_norm")]
    cells = [cell.strip() for cell in layer_norm.strip("|").split("|")]
    assert cells == ["SOME GPU", "layer_norm", "forward", "2", "0.87", "0.50", "1.50", "31%"]
    (gpt2,) = [line for line in page.splitlines() if "GPT-2" in line]
    cells = [cell.strip() for cell in gpt2.strip("|").split("|")]
    assert cells[2:] == ["20.00 (20.00-20.00)", "1.20x", "1.0e-06", "2.0e-06"]
    assert "24.00 (24.00-24.00)" in written
    (others,) = [line for line in page.splitlines() if "| all others " in line]
    assert others.count("not measured") == 6


def test_a_run_that_is_repeated_counts_once(results):
    result_files.write(results / "SOME-GPU", "speed", [recorded("wide", "normreg", 0.5)], [], {})
    records = result_files.records_of(result_files.load(results / "SOME-GPU", "speed")["layer_norm"])
    assert len(records) == len(RECORDS)
    assert compare.comparisons(records)[0].speed_up == 3


# Archives

SMOKE = [
    dict(operation="layer_norm", what="agrees", case="33x64", ours=[0.5, 1.25], torch=[0.5, 2.0], ok=True),
    dict(operation="layer_norm", what="agrees", case="9x4096", ok=False, error="CUDA error: a | b\nmore"),
    dict(operation="dropout", what="CUDA graph", case="dropout", ok=True),
    dict(operation="layer_norm", what="host us", case="8x768", normreg=12.345678, torch=10.0),
]
JUNIT = """<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest"
errors="1" failures="1" skipped="2" tests="7" time="98.6">
<testcase classname="tests.test_dropout" name="test_mask[0.1]" time="0.1" />
<testcase classname="tests.test_dropout" name="test_graph" time="0.1">
<failure message="RuntimeError: CUDA error&#10;at kernel.cu">the traceback</failure></testcase>
<testcase classname="tests.test_far" name="test_far"><error message="no memory">trace</error></testcase>
<testcase classname="tests.test_far" name="test_other"><skipped message="slow">s</skipped></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def pack(tmp_path):
    """Makes a results.tgz of a machine's folder, or of {path: text}."""

    def make(files):
        packed = tmp_path / "results.tgz"
        with tarfile.open(packed, "w:gz") as tar:
            if isinstance(files, Path):
                tar.add(files, files.name)
                return packed
            for path, text in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(text.encode())
                tar.addfile(member, io.BytesIO(text.encode()))
        return packed

    return make


@pytest.fixture
def machine(tmp_path):
    """A machine's folder as a pass leaves it, outside the folder of results."""
    folder = tmp_path / "elsewhere" / "OTHER-GPU"
    result_files.write(folder, "smoke", SMOKE, [], ENVIRONMENT)
    result_files.write(folder, "speed", RECORDS, ["a case"], ENVIRONMENT)
    (folder / "tests").mkdir()
    (folder / "tests/tests.xml").write_text(JUNIT)
    (folder / "tests/tests.log").write_text("...F.\n1 failed, 3 passed\n")
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    return folder


def test_an_archive_is_unpacked_and_rendered(results, pack, machine, capsys):
    pytest.importorskip("matplotlib")
    assert run_report(results, pack(machine)) == 0
    assert f"unpacked: {results / 'OTHER-GPU/smoke/dropout.json'}" in capsys.readouterr().out
    written = (results / "OTHER-GPU/report.md").read_text()
    assert written.count("commit fedcba987654, OTHER GPU") == 1
    assert "2 of 3 checks are right." in written
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in written.splitlines()]
    assert ["operation", "case", "ours", "torch", "ok", "error"] in rows
    assert ["layer_norm", "33x64", "0.5, 1.25", "0.5, 2", "yes", "-"] in rows
    assert ["layer_norm", "9x4096", "-", "-", "NO", "CUDA error: a / b more"] in rows
    assert "### host us\n\n- operation: layer_norm\n- case: 8x768\n- normreg: 12.35\n" in written
    assert ["tests.test_dropout::test_graph", "RuntimeError: CUDA error"] in rows
    assert ["tests.test_far::test_far", "no memory"] in rows
    assert "### CUDA graph" in written
    assert "3 passed, 2 failed, 2 skipped in 99 s." in written
    assert "| wide   | forward   | 1.0 |" in written  # without a copy that was timed, too
    page = (results.parent.parent / "docs/benchmarks/speed.md").read_text()
    assert "`bench/results/OTHER-GPU/report.md`" in page
    assert "`bench/results/SOME-GPU/report.md`" in page


@pytest.mark.parametrize("part", ["smoke", "tests"])
def test_a_machine_without_speed_is_rendered_too(results, pack, machine, part):
    pytest.importorskip("matplotlib")
    files = {
        f"OTHER-GPU/{path.relative_to(machine)}": path.read_text()
        for path in machine.rglob("*")
        if path.is_file() and path.parent.name in (part, "OTHER-GPU")
    }
    run_report(results, pack(files))
    written = (results / "OTHER-GPU/report.md").read_text()
    assert "commit fedcba987654, OTHER GPU" in written
    assert ("2 of 3 checks are right." in written) == (part == "smoke")
    assert ("3 passed" in written) == (part == "tests")


def test_an_archive_adds_to_what_is_there_once(results, pack, machine):
    there = results / "OTHER-GPU"
    result_files.write(there, "speed", [recorded("older", "normreg", 1.0)], [], ENVIRONMENT)
    (there / "tests").mkdir()
    (there / "tests/tests.xml").write_text("an older one")
    for _ in range(2):
        archive.unpack(pack(machine), results)
    runs = result_files.load(there, "speed")["layer_norm"]
    assert [len(run["records"]) for run in runs] == [1, len(RECORDS)]
    assert (there / "tests/tests.xml").read_text() == JUNIT
    assert len(result_files.load(results / "SOME-GPU", "speed")["layer_norm"]) == 1


def test_tests_that_did_not_end_say_how_far_they_came(tmp_path):
    (tmp_path / "tests.log").write_text("tests/test_dropout.py ....\n[ 40%] still going\n")
    assert "No summary: tests.xml: " in checks.tests_lines(tmp_path)[0]
    assert "The log ends: `[ 40%] still going`" in checks.tests_lines(tmp_path)
    (tmp_path / "tests.xml").write_text("<testsuites><testsuite")
    assert "No summary: tests.xml: " in checks.tests_lines(tmp_path)[0]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"../outside.json": "{}"}, "OutsideDestinationError"),
        ({"/tmp/absolute/speed/x.json": "{}"}, None),
        (
            {"tests.xml": "<a/>"},
            "expected a folder named for the GPU with the results in it, found tests.xml",
        ),
        ({}, "found nothing"),
    ],
)
def test_archives_of_something_else_are_refused(tmp_path, pack, files, why):
    results = tmp_path / "results"
    packed = pack(files)
    if why is None:  # below the results all the same
        assert archive.unpack(packed, results) == [results / "tmp/absolute/speed/x.json"]
        return
    with pytest.raises(SystemExit, match=why):
        archive.unpack(packed, results)
    assert not (tmp_path / "outside.json").exists()


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "results.tgz").write_text("not one")
    with pytest.raises(SystemExit, match=r"expected a results.tgz as `make gpu` writes; ReadError"):
        archive.unpack(tmp_path / "results.tgz", tmp_path)
    with pytest.raises(SystemExit, match="FileNotFoundError"):
        archive.unpack(tmp_path / "none.tgz", tmp_path)
