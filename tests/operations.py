"""The examples of every operation, its functions and its layers, from the declarations in `bench/operations`.

The contract tests take their parameters from here, by a filter, so that a new operation is a new declaration.
Examples under other names than their function's or class's are variants.
"""

import pytest
import torch
from support.reference import leave_initial_values

from bench.operations import DECLARED, FUNCTIONS, OURS, TORCH
from bench.operations.dropout import Dropout
from normreg.models.registry import COUNTERPARTS

__all__ = [
    "DECLARED", "FUNCTIONS", "KINDS", "LAYERS", "LIBRARIES", "OF_RANKS", "OPERATIONS", "OURS", "Called",
    "Dropout", "every_function", "every_kind", "every_layer", "torch_layer",
]  # fmt: skip

OF_RANKS = {"sync_batch_norm"}  # which needs torch.distributed: in ranks_sync_batch_norm.py
LIBRARIES = {"torch": TORCH, "normreg": OURS}
OPERATIONS = {key: example for key, example in FUNCTIONS.items() if key == example.name}
LAYERS = {key: example for one in DECLARED.values() for key, example in one.layer_examples().items()}
# those that `replace` makes of torch's
KINDS = {kind: row for kind, row in LAYERS.items() if getattr(torch.nn, kind, None) in COUNTERPARTS}

every_function = pytest.mark.parametrize("row", FUNCTIONS.values(), ids=FUNCTIONS)
every_layer = pytest.mark.parametrize("row", LAYERS.values(), ids=LAYERS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def torch_layer(kind, device, dtype=torch.float32):
    """A torch layer with nothing at its initial value, and an input for it."""
    module = KINDS[kind].make(torch.nn).to(device, dtype)
    leave_initial_values(module)
    return module, torch.randn(5, *KINDS[kind].sample, device=device, dtype=dtype)


class Called(torch.nn.Module):
    """A function of ours, as a module, which is what torch.export takes."""

    def __init__(self, row):
        super().__init__()
        self.row = row

    def forward(self, *inputs):
        return self.row(OURS, *inputs)
