"""The pages of layers: every layer and function has one, and the tests that it names exist."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

import normreg
from normreg.kernels.tiling.rows import Rows, layer_norm_backward_wide_tile

ROOT = Path(__file__).parents[2]

PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs/layers").glob("*.md"))}


def described(page):
    """The names of layers and functions in the first rows of a page's table of facts."""
    _, found, facts = page.partition("## Facts\n")
    rows = re.match(r"(?:\n|\| fact \|.*\n|\|-.*\n|\| (?:layer|function).*\n)*", facts)[0] if found else ""
    return re.findall(r"\{py:(?:class|func)\}`normreg\.([\w.]+)`", rows)


def test_every_layer_and_function_is_on_one_page():
    found = Counter(name for page in PAGES.values() for name in described(page))
    functions = [f"functional.{name}" for name in normreg.functional.__all__]
    assert found == Counter([*normreg.nn.__all__, *functions])


def test_every_page_is_listed():
    for name in PAGES.keys() - {"index"}:
        assert f"]({name}.md)" in PAGES["index"], name
        assert f" <{name}>\n" in PAGES["index"], name


@pytest.mark.parametrize("name", PAGES)
def test_tests_that_a_page_names_exist(name):
    """Each stands behind the file that has it, in the list at the page's end, and nowhere else."""
    above, found, listed = PAGES[name].partition("\n## Tests\n")
    assert found
    assert "`test_" not in above
    for line in re.findall(r"^- ((?:.|\n  )*)", listed, re.MULTILINE):
        file, *tests = re.findall(r"`([\w/.]+)`", line)
        source = (ROOT / file).read_text()
        assert tests
        assert [test for test in tests if f"def {test}(" not in source] == []


def test_the_widest_rows_that_layer_norm_adds_up_by_one_program():
    """The page says it of 32,768 elements, beside the table that says it of up to 24,576."""
    taken = [
        layer_norm_backward_wide_tile(Rows(1, 99, cols, False), torch.bfloat16, True)
        for cols in (32768, 32760)
    ]
    assert [tile is not None for tile in taken] == [True, False]
