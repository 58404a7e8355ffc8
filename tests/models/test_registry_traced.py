"""Layers of other libraries are leaves of torch.fx's graphs: called as they are set."""

import pytest
import torch
from foreign_layers import IMAGES, NORMS, StochasticDepth, TimmDropPath
from torch import nn

import normreg

LAYERS = {cls.__name__: (cls, shape) for cls, (shape, _) in NORMS.items()} | {
    "DropPath": (TimmDropPath, IMAGES),
    "StochasticDepth": (StochasticDepth, IMAGES),
    "StochasticDepth of batches": (lambda _: StochasticDepth(mode="batch"), IMAGES),
}


@pytest.mark.parametrize("training", [True, False], ids=["traced in training", "traced in evaluation"])
@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_layers_are_called_as_they_are_set(device, make, shape, training):
    drops = make in (TimmDropPath, StochasticDepth)
    model = nn.Sequential(nn.Identity(), make(0.5) if drops else make(8)).to(device).train(training)
    normreg.replace(model)
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]
    x = torch.randn(shape, device=device)
    for flag in (False, True):
        results = []
        for each in (model, traced):
            torch.manual_seed(3)
            results.append(each.train(flag)(x))
        assert torch.equal(*results)
