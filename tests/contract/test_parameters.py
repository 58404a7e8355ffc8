"""Layers find their parameters and buffers wherever torch, or whoever changes a model, has put them."""

import copy

import pytest
import torch
from operations import KINDS, every_kind, torch_layer
from torch.nn.utils import parametrize, prune

import normreg

WITH_WEIGHT = [kind for kind, row in KINDS.items() if getattr(row.make(torch.nn), "weight", None) is not None]


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(layer):
    parametrize.register_parametrization(layer, "weight", Doubled())


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 1)


def plain_attributes(layer):
    """As on DataParallel's replicas."""
    for name, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
        delattr(layer, name)
        setattr(layer, name, tensor if tensor is None else 2 * tensor.detach())


def on_meta_and_back(layer):
    """Parameters and buffers are other objects then."""
    state = layer.state_dict()
    layer.to("meta").load_state_dict({name: 2 * value for name, value in state.items()}, assign=True)


CHANGES = [parametrized, pruned, plain_attributes, on_meta_and_back]


def of_both(kind, device):
    """torch's layer, the same one of normreg, and an input."""
    theirs, x = torch_layer(kind, device)
    model = torch.nn.Sequential(copy.deepcopy(theirs))
    normreg.replace(model)
    return theirs, model[0], x


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", WITH_WEIGHT)
def test_tensors_in_other_places(device, kind, change):
    theirs, ours, x = of_both(kind, device)
    before = copy.deepcopy(ours)(x)
    results = []
    for layer in (theirs, ours):
        change(layer)
        results.append([layer(x), layer.eval()(x)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(results[1][0], before)


@every_kind
def test_functional_call(device, kind):
    theirs, ours, x = of_both(kind, device)
    others = {
        name: value.detach() + 1 for name, value in [*theirs.named_parameters(), *theirs.named_buffers()]
    }
    results = []
    for layer in (theirs, ours):
        torch.manual_seed(0)
        tensors = {name: value.clone() for name, value in others.items()}
        results.append([torch.func.functional_call(layer.eval(), tensors, (x,)), tensors])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", WITH_WEIGHT)
def test_a_traced_layer_reads_its_parameters_at_each_call(device, kind):
    _, ours, x = of_both(kind, device)
    model = torch.nn.Sequential(ours).eval()
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    y = model(x)
    torch.testing.assert_close(traced(x), y, rtol=1e-4, atol=1e-4)
