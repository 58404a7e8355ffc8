"""Errors of compiled code over torch's own: a part of what `python -m bench exactness` measures."""

import pytest
import torch
from triton.runtime import driver

from bench.operations import OPERATIONS
from bench.perf import exactness
from bench.perf.exactness.data import DATA
from bench.perf.exactness.tables import TARGETS, is_missed

CASES = {name: one.exactness[0] for name, one in OPERATIONS.items() if one.exactness}  # in float32
KINDS = "randn", "50 first", "1e4 first", "1e4 anywhere", "mean 10", "mean 1e6"
(IN_SPLITS,) = [case for case in OPERATIONS["batch_norm"].exactness if case.shape == (1, 4, 256, 128)]


@pytest.fixture(autouse=True)
def as_wrong_as_a_gpu_may_be(monkeypatch):
    monkeypatch.setattr(driver.active, "approximate", 0)


@pytest.mark.parametrize("case", [*CASES.values(), IN_SPLITS], ids=str)
def test_as_exact_as_torch(case):
    missed, operation = {}, OPERATIONS[case.operation]
    # a channel has one standard deviation, whatever its size: few channels take more seeds to average over
    seeds = 12 if case is IN_SPLITS else 4
    for kind in KINDS:
        found = exactness.squared_errors(operation, case, DATA[kind], seeds, "cpu")
        ratios = {of: exactness.compared(pairs) for of, pairs in found.items()}
        missed |= {(kind, of): ratios[of]["ratio"] for of in ratios if is_missed(ratios[of], of)}
    assert not missed, f"above {TARGETS}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("rms_norm")])
def test_constant_rows_give_exactly_the_bias(name, dtype):
    (case, *_) = [case for case in OPERATIONS[name].exactness if case.dtype == dtype]
    assert exactness.exact_if_constant(OPERATIONS[name], case, "cpu")
