"""Sums over a million elements of a row, and over more elements of a channel than float32 can count."""

import pytest
import torch
import torch.nn.functional as F
from reference import GRADIENT_UNITS, assert_accurate, copies, error, nudged, run

import normreg
from normreg.kernels import launch, tiling

MILLION, MORE_THAN_FLOAT32_COUNTS = 10**6, 2**24 + 16

# {name: (operation of a library on input, weight and bias, shape of the input, of those parameters it has)}
CASES = {
    "layer_norm of a row": (lambda library, x: library.layer_norm(x, x.shape[1:]), (3, MILLION)),
    "batch_norm": (
        lambda library, x, w, b: library.batch_norm(x, None, None, w, b, training=True),
        (2, 1, MORE_THAN_FLOAT32_COUNTS // 2), (1,), (1,)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_large_reductions(device, monkeypatch, case):
    """float32, of mean 3: no error that grows with the number of elements."""
    monkeypatch.setattr(tiling, "INTERPRETER_TILE_SCALE", 64)  # as users of the interpreter have it
    if launch.INTERPRET:  # the kernel that adds over rows, which are few here, takes more columns at once
        tile = tiling.RowTile(4, 8192, num_warps=4)
        monkeypatch.setattr(tiling, "layer_norm_backward_parameters_tile", lambda rows, dtype: tile)
    operation, shape, *parameters = case
    inputs = [
        torch.randn(shape, device=device) + 3,
        *(torch.rand(p, device=device) + 0.5 for p in parameters),
    ]
    inputs = [t.requires_grad_() for t in inputs]
    dy = torch.randn(shape, device=device)

    ours = run(lambda *given: operation(normreg.functional, *given), inputs, dy)
    theirs, exact, moved = (
        run(lambda *given: operation(F, *given), given, incoming)
        for given, incoming in (
            (inputs, dy),
            (copies(inputs, torch.float64), dy.double()),
            (copies(inputs, torch.float64), nudged(dy.double(), torch.float32)),
        )
    )
    for name, our, their, expected, near in zip(("y", "dx", "dweight", "dbias"), ours, theirs, exact, moved):
        assert_accurate(our, their, expected, name, error(near, expected), GRADIENT_UNITS)
