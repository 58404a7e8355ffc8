"""What `bench exactness` draws, how it compares errors, and the tables and plots made of them."""

import math
import re
import statistics
from types import SimpleNamespace

import blank_pages
import pytest
import torch

from bench import report
from bench.harness import result_files
from bench.operations import DECLARED, OPERATIONS, cases
from bench.operations.case import cases_of
from bench.perf import exactness
from bench.perf.exactness import data, tables

FAMILIES = ("layer_norm", "batch_norm", "group_norm")


def test_every_norm_has_cases_in_three_dtypes():
    norms = {
        name for name, one in DECLARED.items() if one.measured and (one.kernels in FAMILIES or "norm" in name)
    }
    chosen = cases("exactness")
    assert (
        {case.operation for case in chosen} == norms == {n for n, one in OPERATIONS.items() if one.together}
    )
    for name in norms:
        dtypes = [case.dtype for case in OPERATIONS[name].exactness]
        assert dtypes[0] == torch.float32
        assert {*dtypes} == {torch.float32, torch.bfloat16, torch.float16}


@pytest.mark.parametrize("case", cases("exactness"), ids=str)
def test_what_is_normalised_together(case):
    """Rows of `together` are what torch's layer takes the mean of: two constants in them give two biases."""
    operation = OPERATIONS[case.operation]
    rows = operation.together(torch.arange(torch.Size(case.shape).numel()).view(case.shape), case)
    assert rows.dim() == 2
    assert torch.equal(rows.flatten().sort()[0], torch.arange(rows.numel()))
    of_keys = case.operation == "qk_norm" and "layer_norm" not in case.layer
    if case.operation in ("rms_norm", "rms_norm_channels") or "RMSNorm" in case.layer or of_keys:
        return
    torch.manual_seed(0)
    layer = exactness.draw_layer(case, "cpu").double()
    for name, parameter in layer.named_parameters():
        if name == "residual":
            torch.nn.init.zeros_(parameter)
    x = data.constant(case, operation.together).double()
    torch.testing.assert_close(layer(x), layer(torch.zeros_like(x)), rtol=0, atol=1e-7)


def test_outliers_lie_where_they_are_named():
    (case,) = cases_of("batch_norm", "fp32 3x4x2x6 channels_last")
    together = OPERATIONS["batch_norm"].together
    for name, places in (("50 first", {0}), ("1e4 middle", {18}), ("50 anywhere", {*range(36)})):
        x = data.DATA[name].draw(case, together)
        assert x.is_contiguous(memory_format=torch.channels_last)
        rows, found = together(x, case), float(name.split()[0])
        assert (rows == found).sum(1).tolist() == [1] * 4
        assert {*(rows == found).nonzero()[:, 1].tolist()} <= places
    assert 9 < data.DATA["mean 10"].draw(case, together).mean() < 11
    kept = {
        dtype: [n for n, d in data.DATA.items() if d.fits(dtype)] for dtype in (torch.float32, torch.float16)
    }
    assert {*kept[torch.float32]} - {*kept[torch.float16]} == {"mean 1e6"}


def test_a_ratio_is_of_root_mean_squares():
    pairs = [(4.0, 1.0), (2.0, 1.0), (12.0, 4.0)]
    found = exactness.compared(pairs)
    assert found["ratio"] == pytest.approx(math.sqrt(18 / 6), rel=1e-3)
    assert found["torch"] == pytest.approx(math.sqrt(2), rel=1e-3)
    without = [math.sqrt(14 / 5), math.sqrt(16 / 5), math.sqrt(6 / 2)]
    assert found["standard_error"] == pytest.approx(math.sqrt(2 * statistics.pvariance(without)), rel=1e-3)
    assert exactness.ratio([(0.0, 0.0)]) == 1
    assert exactness.ratio([(1e-9, 0.0)]) == math.inf
    assert tables.is_missed(dict(ratio=math.nan, standard_error=0.0), "y")


def record(of, dtype="fp32", error=0.01, **ratios):
    results = {name: dict(ratio=r, standard_error=error, torch=1e-7) for name, r in ratios.items()}
    shared = dict(operation="layer_norm", case=f"layer_norm {dtype} 2x3", on="a GPU")
    return shared | dict(data=of, seeds=2, results=results)


CONSTANT = {k: v for k, v in record("constant").items() if k not in ("seeds", "results")} | dict(exact=False)
RECORDS = [
    record("randn", y=1.1, dweight=1.51),
    record("50 first", y=24.0, dweight=0.001),
    record("mean 10", y=1e9, dweight=math.inf),
    CONSTANT,
    record("randn", "bf16", y=1.02),
    record("50 first", "bf16", y=1.04),
]


def test_tables_have_what_is_above_a_target_in_bold():
    lines = [re.split(r" {2,}", line.strip()) for line in tables.table(RECORDS).splitlines()]
    assert lines[0][:2] == ["data", "y"]
    assert lines[2][0].startswith("layer_norm fp32 2x3, ")
    assert lines[3][:3] == ["randn", "1.10±0.01", "1.51±0.01"]  # not by more than its standard error
    assert lines[4][1] == "**24.00±0.01**"
    assert lines[6] == ["constant", "**not the bias**"]
    assert tables.table([]).startswith("data  y  dx")
    assert exactness.status(RECORDS) == 1
    assert exactness.status(RECORDS[:3]) == 0


@pytest.mark.parametrize(("largest", "said"), [(1.12, "1.12 times torch's own"), (1.004, "torch's own")])
def test_the_title_is_of_what_a_plot_draws(largest, said):
    """The largest ratio of the title is drawn, whichever result it is of."""
    figure = tables.figure_of("layer_norm", [record("randn", y=0.9, dscale=largest, unknown=9.0)])
    (panel,) = figure.axes
    drawn = [bars.get_children()[0].get_ydata().item() for bars in panel.containers]
    assert drawn == [0.9, largest]
    assert figure._suptitle.get_text() == f"layer_norm: no error exceeds {said}."
    assert "not in 16 bits" not in tables.notes([record("mean 1e6")])
    assert "mean 1e6: not in 16 bits" in tables.notes([record("mean 1e6"), record("randn", "bf16")])


def test_report_writes_page_plot_and_section(tmp_path):
    environment = dict(date="2026-11-28", commit="0123", gpu=None, torch="2", triton="3", python="3")
    results = tmp_path / "results"
    for records in (RECORDS[:1], RECORDS):  # run twice, of which the last counts
        result_files.write(results / "machine", "exactness", records, [], environment)
    blank_pages.write(tmp_path)
    report.run(SimpleNamespace(archive=None, results=results, root=tmp_path))
    assert (results / "machine/exactness/layer_norm.png").stat().st_size > 10**4
    page = report.block(tmp_path / "docs/benchmarks/exactness.md", "exactness")
    assert "](../../bench/results/machine/exactness/layer_norm.png)" in page
    assert page.count("| fp32 2x3 |") == 1 + 3  # the largest, then each kind of data
    assert "Constant rows, channels or groups give **not the bias**." in page
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    assert ["fp32 2x3", "y", "1.10", "**1000000000.00**", "mean 10"] in lines
    assert ["", "dweight", "1.51", "**inf**", "mean 10"] in lines
    assert "the largest ratio is 1.04: y of layer_norm bf16 2x3, 50 first." in " ".join(page.split())
