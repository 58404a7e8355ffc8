"""Speeding up the interpreter changes no bit of a result and hides no error."""

import programs
import pytest


@pytest.mark.parametrize("what", [pytest.param("results", marks=pytest.mark.slow), "errors"])
def test_a_faster_interpreter_is_the_same(tmp_path, what):
    programs.interpreted(f"faster_{what}", tmp_path / "log")
