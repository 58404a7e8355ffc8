"""What stands between the marks of README and of the documentation's pages."""

import json
from pathlib import Path
from types import SimpleNamespace

import blank_pages
import pytest
from support.places import PLACES

from bench import report
from bench.report import places

ROOT = Path(__file__).parents[2]


def test_without_its_marks_a_readme_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("# Title\n")
    with pytest.raises(SystemExit, match="put them where results go"):
        report.fill(tmp_path / "README.md", "new\n", "<!-- begin -->", "<!-- end -->")


@pytest.mark.parametrize("name", report.BLOCKS)
def test_what_stands_between_marks_is_what_report_writes(name):
    page, section = report.BLOCKS[name]
    assert report.block(ROOT / page, name) == section(ROOT / "bench/results")
    others = [path for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")) if path != ROOT / page]
    assert not [path for path in others if report.marks(name)[0] in path.read_text()]


def test_without_a_gpus_results_the_page_has_a_sentence_and_no_table(tmp_path):
    blank_pages.write(tmp_path)
    report.run(SimpleNamespace(archive=None, results=tmp_path / "results", root=tmp_path))
    page = report.block(tmp_path / "docs/benchmarks/speed.md", "speed")
    assert page.startswith("**GPU timings: none yet.**")
    assert "|" not in page


def test_pages_state_the_largest_error():
    files = (ROOT / "bench/results/no-gpu/exactness").glob("*.json")
    runs = [run for path in files for run in json.loads(path.read_text())["runs"]]
    records = [record for run in runs for record in run["records"]]
    ratios = [one["ratio"] for record in records for one in record.get("results", {}).values()]
    assert len(ratios) > 2000
    assert sum(ratio <= 1.005 for ratio in ratios) > 0.95 * len(ratios)  # "mostly below torch's"
    for page in ("README.md", "docs/precision.md", "docs/faq.md"):
        assert f"{max(ratios):.2f}" in (ROOT / page).read_text(), page


def test_every_picture_says_how_large_it_is():
    density = (6299).to_bytes(4, "big")  # 160 points an inch, in those of a metre
    made = [path for folder in ("bench", "docs") for path in (ROOT / folder).rglob("*.png")]
    assert len(made) >= 20
    assert [path for path in made if b"pHYs" + 2 * density + b"\1" not in path.read_bytes()] == []


def test_every_place_is_shown_by_tests_that_passed():
    found = json.loads(places.FILE.read_text())["places"]
    assert {name: one["runs"] for name, one in found.items()} == PLACES
    for name, one in found.items():
        assert one["tests"], name
        for test, counts in one["tests"].items():
            file, _, function = test.partition("::")
            source = (ROOT / "tests" / file).read_text()
            assert {*counts} == {"passed"}, test
            assert f'@pytest.mark.place("{name}")' in source.partition(f"def {function}(")[0], test
