"""Fused models across ranks; the checks are in `ranks_fused.py`."""

import pytest
import worlds

CHECKS = ["under_distributed_data_parallel", "under_fully_shard", "a_fused_whole_under_fully_shard"]


@pytest.mark.parametrize("check", CHECKS)
def test_fused(check):
    worlds.check("ranks_fused", check, 2)
