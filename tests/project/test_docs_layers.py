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
TESTS = set(
    re.findall(r"def (test_\w+)", "".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py")))
)


def described(page):
    """The names of layers and functions in the first rows of a page's table of facts."""
    _, found, facts = page.partition("## Facts\n")
    rows = re.match(r"(?:\n|\| \|.*\n|\|-.*\n|\| (?:layer|function).*\n)*", facts)[0] if found else ""
    return re.findall(r"\{py:(?:class|func)\}`normreg\.([\w.]+)`", rows)


def test_every_layer_and_function_is_on_one_page():
    found = Counter(name for page in PAGES.values() for name in described(page))
    functions = [f"functional.{name}" for name in normreg.functional.__all__]
    assert found == Counter([*normreg.nn.__all__, *functions])


def test_every_page_is_listed():
    for name in PAGES.keys() - {"index"}:
        assert f"]({name}.md)" in PAGES["index"], name
        assert f"\n{name}\n" in PAGES["index"], name


@pytest.mark.parametrize("name", PAGES)
def test_tests_that_a_page_names_exist(name):
    named = set(re.findall(r"`(test_\w+)`", PAGES[name]))
    assert named
    assert named <= TESTS


def test_the_widest_rows_that_layer_norm_adds_up_by_one_program():
    """The page says it of 32,768 elements, beside the table that says it of up to 24,576."""
    taken = [
        layer_norm_backward_wide_tile(Rows(1, 99, cols, False), torch.bfloat16, True)
        for cols in (32768, 32760)
    ]
    assert [tile is not None for tile in taken] == [True, False]
