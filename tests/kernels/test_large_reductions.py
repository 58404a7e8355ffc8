"""Sums over a million elements of a row, and over more elements of a channel than float32 can count."""

import formulas
import pytest
import torch
from operations import OPERATIONS, OURS
from support.reference import assert_accurate, copies, error, nudged, run

from normreg.kernels import launch, tiling

MILLION, MORE_THAN_FLOAT32_COUNTS = 10**6, 2**24 + 16

# {name: (row of the table, shape of the input, of the parameters that it is given)}
CASES = {
    "layer_norm of a row": ("layer_norm", (3, MILLION)),
    "batch_norm": ("batch_norm", (2, 1, MORE_THAN_FLOAT32_COUNTS // 2), (1,), (1,)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_large_reductions(device, monkeypatch, case):
    """The error of float32 sums of mean 3 does not grow with the number of elements."""
    monkeypatch.setattr(tiling.hardware, "INTERPRETER_TILE_SCALE", 64)  # as users of the interpreter have it
    if launch.INTERPRET:  # the kernel that adds over rows, which are few here, takes more columns at once
        tile = tiling.rows.RowTile(4, 8192, num_warps=4)
        monkeypatch.setattr(tiling.rows, "layer_norm_backward_parameters_tile", lambda rows, dtype: tile)
    name, shape, *parameters = case
    operation = OPERATIONS[name]
    inputs = [
        torch.randn(shape, device=device) + 3,
        *(torch.rand(p, device=device) + 0.5 for p in parameters),
    ]
    inputs = [t.requires_grad_() for t in inputs]
    dy = torch.randn(shape, device=device)

    ours = run(lambda *given: operation(OURS, *given), inputs, dy)
    theirs, exact, moved = (
        run(lambda *given: operation(formulas, *given), given, incoming)
        for given, incoming in (
            (inputs, dy),
            (copies(inputs, torch.float64), dy.double()),
            (copies(inputs, torch.float64), nudged(dy.double(), torch.float32)),
        )
    )
    for name, our, their, expected, near in zip(("y", "dx", "dweight", "dbias"), ours, theirs, exact, moved):
        assert_accurate(our, their, expected, name, error(near, expected))
