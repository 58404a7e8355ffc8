"""The least bytes and launches of torch's operators against counts by hand."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bench.harness import result_files
from bench.harness.budget import Budget
from bench.operations import OPERATIONS, cases
from bench.operations.case import cases_of
from bench.perf import chain
from bench.report import chain as report_of_chains

ROWS, COLS = 6, 8
N = ROWS * COLS  # elements of x


def counted(layer, *parameters, shape=(ROWS, COLS)):
    """Launches and bytes of a function's forward and backward, of bfloat16 tensors."""
    x, dy = (torch.empty(shape, device="meta", dtype=torch.bfloat16) for _ in range(2))
    wanted = [t.requires_grad_() for t in (x, *parameters)]
    y, forward = chain.counted(lambda: layer(*wanted))
    _, backward = chain.counted(lambda: torch.autograd.grad(y, wanted, dy))
    return [(len(operators), sum(moved for _, moved in operators)) for operators in (forward, backward)]


def vector():
    return torch.empty(COLS, device="meta", dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("layer", "parameters", "forward", "backward"),
    [
        # x, y and a mask of bytes; dy, the mask and dx
        pytest.param(lambda x: F.dropout(x, 0.1, True), 0, (1, 5 * N), (1, 5 * N), id="dropout"),
        # x, y; dy, y or x, dx
        pytest.param(F.relu, 0, (1, 4 * N), (1, 6 * N), id="relu"),
        pytest.param(F.gelu, 0, (1, 4 * N), (1, 6 * N), id="gelu"),
        # views move nothing, a copy reads and writes
        pytest.param(lambda x: x[:, None].transpose(0, 2).squeeze().t(), 0, (0, 0), (0, 0), id="views"),
        pytest.param(lambda x: x.t().contiguous().t(), 0, (1, 4 * N), (0, 0), id="copy"),
        # a vector is read once, however often it repeats; its gradient is a sum over dy
        pytest.param(torch.add, 1, (1, 4 * N + 2 * COLS), (1, 2 * N + 2 * COLS), id="bias"),
        pytest.param(lambda x, b: x + b.expand(ROWS, -1), 1, (1, 4 * N + 2 * COLS), None, id="expanded"),
        # x, weight, y and rstd; dy, x, rstd, weight, dx and dweight
        pytest.param(
            lambda x, w: F.rms_norm(x, (COLS,), w),
            1,
            (1, 4 * N + 2 * COLS + 4 * ROWS),
            (1, 6 * N + 4 * COLS + 4 * ROWS),
            id="rms_norm",
        ),
        # the mean, too
        pytest.param(
            lambda x, w: F.layer_norm(x, (COLS,), w),
            1,
            (1, 4 * N + 2 * COLS + 8 * ROWS),
            (1, 6 * N + 4 * COLS + 8 * ROWS),
            id="layer_norm",
        ),
        # both tensors of a list are read; a gradient that two paths give is added up
        pytest.param(lambda x: torch.cat((x, x))[ROWS:], 0, (1, 8 * N), None, id="list"),
        pytest.param(lambda x: x.exp() + x, 0, (2, 4 * N + 6 * N), (2, 6 * N + 6 * N), id="two paths"),
    ],
)
def test_counts_by_hand(layer, parameters, forward, backward):
    found = counted(layer, *(vector() for _ in range(parameters)))
    assert found[0] == forward
    assert backward is None or found[1] == backward


@pytest.mark.parametrize("one", chain.CHAINS, ids=lambda one: one.label)
def test_a_chain_computes_what_the_fused_call_does(one):
    """In float64, in evaluation where it drops: chains that users write otherwise than a declaration does."""
    small = {"batch_norm_act": "2x4x3x3", "group_norm_act": "2x64x3x3", "ada_norm": "2x3x8"}
    shape = small.get(one.operation, "2x3x4x8" if one.operation == "qk_norm" else "3x8")
    words = [shape if "x" in word and word[0].isdigit() else word for word in one.text.split()]
    (case,) = cases_of(one.operation, " ".join(["fp64", *words]))
    options = dict(device="cpu", dtype=torch.float64)
    expected = OPERATIONS[one.operation].torch_layer(case, **options)
    layer = (one.layer or OPERATIONS[one.operation].torch_layer)(case, **options)
    for parameter in (*expected.parameters(), *layer.parameters()):
        torch.nn.init.ones_(parameter) if parameter.dim() < 2 else torch.nn.init.constant_(parameter, 0.5)
    x = case.like_input(torch.randn, "cpu")
    torch.testing.assert_close(layer.eval()(x), expected.eval()(x))


def test_each_chain_is_beside_a_case_of_the_ledger():
    ledger = {str(case) for case in cases("ledger")}
    assert {str(one.case) for one in chain.CHAINS} <= ledger


def test_records_are_the_same_at_every_run():
    arguments = SimpleNamespace(operations=["bias_act_dropout", "layer_norm"])
    first, again = ([*chain.run(arguments, Budget(None))] for _ in range(2))
    assert first == again
    assert [record["direction"] for record in first] == ["forward", "backward"] * 2
    gelu = first[2]
    n = 2112 * 4096
    assert gelu["torch_operators"] == [
        dict(name="aten::gelu", bytes=4 * n),
        dict(name="aten::native_dropout", bytes=5 * n),
    ]
    assert gelu["moved_bytes"] == 9 * n
    assert "gelu: 4.00, native_dropout: 5.00" in chain.table(first)


def made_up(case, launches, operators, moved, elements=100):
    """Records of both directions, of which the backward moves twice as much."""
    shared = dict(operation="made up", case=case, elements=elements)
    kernels, noted = [dict(kernel="k")] * launches, [dict(name="aten::mul", bytes=moved)] * operators
    for direction, factor in zip(chain.DIRECTIONS, (1, 2)):
        counted = dict(launches=kernels) if launches else {}
        yield shared | counted | dict(direction=direction, torch_operators=noted, moved_bytes=factor * moved)


def test_a_fused_call_stands_beside_its_chain(tmp_path):
    pytest.importorskip("matplotlib")
    environment = dict(date="2026-11-29", torch="2.13.0+cpu")
    cases = {one.label: str(one.case) for one in chain.CHAINS}
    rotary, alone = cases["QK norm + rotary"], cases["LayerNorm alone"]
    ours = [*made_up(rotary, 1, 1, 1000, 50), *made_up(alone, 2, 0, 400)]
    theirs = [*made_up(rotary, 0, 7, 4000), *made_up(alone, 0, 1, 300)]
    for part, records in (("ledger", ours), ("chain", theirs)):
        result_files.write(tmp_path / "results/no-gpu", part, records, [], environment)
    found = report_of_chains.compared(tmp_path / "results/no-gpu")
    assert [(one.bytes, one.launches, one.chain_bytes, one.chain_launches) for one in found] == [
        (30, 4, 120, 14),
        (12, 4, 9, 2),
    ]
    text = report_of_chains.section(tmp_path / "results")
    assert (
        "![Fused calls move 25 % of the bytes of torch's operators, in 4 launches instead of 14](docs" in text
    )
    assert "| QK norm" not in text
    page = report_of_chains.page(tmp_path / "results")
    (row,) = [line for line in page.splitlines() if line.startswith("| QK norm + rotary ")]
    numbers = [cell.strip() for cell in row.strip("|").split("|")][1:]
    assert numbers == ["120.0", "14", "30.0", "4", "25%"]
    assert "(torch 2.13.0)" in text
    assert "(../images/bytes" in page
    assert "- backward: 7 `mul` 40.00" in report_of_chains.operators(tmp_path / "results")
    written = report_of_chains.write_image(tmp_path / "results", tmp_path)
    assert written.stat().st_size > 10_000
