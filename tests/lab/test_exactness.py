"""Errors of compiled code over torch's own: a part of what `python -m bench exactness` measures."""

import pytest
import torch
from triton.runtime import driver

from bench.operations import OPERATIONS
from bench.perf import exactness
from bench.perf.exactness.data import DATA
from bench.perf.exactness.tables import TARGETS, is_missed

CASES = {name: one.exactness[0] for name, one in OPERATIONS.items() if one.exactness}  # in float32
SEEDS = 4
# torch computes these statistics in float64. An outlier is nearly all of the squares of a group of 784: their
# sum in float32, even added as a tree, is exact enough for a ratio of 1.15 only if its root is, too.
OF_OUTLIERS = {"instance_norm": 1.25}


@pytest.fixture(autouse=True)
def as_wrong_as_a_gpu_may_be(monkeypatch):
    monkeypatch.setattr(driver.active, "approximate", 0)


@pytest.mark.parametrize("name", CASES)
def test_as_exact_as_torch(name):
    missed = {}
    for kind in ("randn", "50 first", "1e4 anywhere", "mean 10", "mean 1e6"):
        found = exactness.squared_errors(OPERATIONS[name], CASES[name], DATA[kind], SEEDS, "cpu")
        ratios = {of: exactness.compared(pairs) for of, pairs in found.items()}
        target = OF_OUTLIERS.get(name) if kind in ("50 first", "1e4 anywhere") else None
        missed |= {(kind, of): ratios[of]["ratio"] for of in ratios if is_missed(ratios[of], of, target)}
    assert not missed, f"above {TARGETS}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [name for name in CASES if name != "rms_norm"])
def test_constant_rows_give_exactly_the_bias(name, dtype):
    (case, *_) = [case for case in OPERATIONS[name].exactness if case.dtype == dtype]
    assert exactness.exact_if_constant(OPERATIONS[name], case, "cpu")
