"""Programs whose elements lie beyond 2^31; each case has a process of its own."""

import programs
import pytest
from programs.far_offsets import CASES


@pytest.mark.some(12)
@pytest.mark.parametrize("case", CASES)
def test_elements_beyond_2_to_the_31(case, tmp_path):
    programs.interpreted("far_offsets", tmp_path / "log", case)
