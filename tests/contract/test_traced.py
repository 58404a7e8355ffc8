"""Layers are leaves of torch.fx's graphs, as torch.nn's are: called at each call, with the flags of then."""

import inspect
import pickle

import pytest
import torch
from operations import every_layer

import normreg


class Doubled(torch.nn.Module):
    """The layer of an example within a model, with an operation before it and x as all else it needs."""

    def __init__(self, row):
        super().__init__()
        (self.layer,) = (module for module in row.make().modules() if type(module).__name__ == row.kind)
        _, *others = inspect.signature(self.layer.forward).parameters.values()
        self.others = sum(other.default is other.empty or other.name == "residual" for other in others)

    def forward(self, x):
        return self.layer(2 * x, *self.others * [x])


class Naming(torch.fx.Tracer):
    """A tracer that notes the module of each node, as torchvision's for features does."""

    def __init__(self):
        super().__init__()
        self.here, self.homes = "", {}

    def call_module(self, module, forward, args, kwargs):
        outside, self.here = self.here, self.path_of_module(module)
        try:
            if self.is_leaf_module(module, self.here):
                return self.create_proxy("call_module", self.here, args, kwargs)
            return forward(*args, **kwargs)
        finally:
            self.here = outside

    def create_proxy(self, *arguments, **options):
        proxy = super().create_proxy(*arguments, **options)
        self.homes[proxy.node] = self.here
        return proxy


def traced_by(tracer, model):
    return torch.fx.GraphModule(model, tracer.trace(model))


def same_results(device, row, *models):
    """Results of all models in training, evaluation and training again, after the same seed."""
    x = torch.randn(5, *row.sample, device=device)
    for training in (False, True, False):
        results = []
        for model in models:
            torch.manual_seed(3)
            results.append(model.train(training)(x))
        torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.place("torch.fx")
@pytest.mark.parametrize("training", [True, False], ids=["traced in training", "traced in evaluation"])
@pytest.mark.parametrize("tracer", [torch.fx.Tracer, Naming], ids=["torch.fx's", "torchvision's"])
@every_layer
def test_layers_are_called_as_they_are_set(device, row, tracer, training):
    model = Doubled(row).to(device).train(training)
    traced = traced_by(tracer(), model)
    called = [traced.get_submodule(n.target) for n in traced.graph.nodes if n.op == "call_module"]
    assert called == [model.layer]
    same_results(device, row, model, traced)


@every_layer
def test_hooks_run_once(device, row):
    """At the call, where a leaf is called; not also while it is traced."""
    model, called = Doubled(row).to(device), []
    model.layer.register_forward_hook(lambda module, inputs, output: called.append(type(output)))
    traced = torch.fx.symbolic_trace(model)
    assert called == []
    traced(torch.randn(5, *row.sample, device=device))
    assert len(called) == 1
    assert called[0] is not torch.fx.Proxy


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("write", [pickle.dumps, pickle._dumps], ids=["in C", "in Python"])
def test_classes_are_found_where_they_stand(protocol, write):
    """A layer tells a tracer that it is torch.nn's; its class still says where it is to be imported from."""
    for name in normreg.nn.__all__:
        cls = getattr(normreg.nn, name)
        assert cls.__module__.startswith("normreg.nn.")
        assert pickle.loads(write(cls, protocol)) is cls


class Twice(normreg.Dropout):
    def forward(self, input):
        return 2 * super().forward(input)


def test_a_derived_class_is_traced_as_one_of_torchs(device):
    """Its own forward is traced into, and runs once."""
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(Twice(0.5)).eval())
    assert "call_module" not in [node.op for node in traced.graph.nodes]
    x = torch.randn(5, device=device)
    assert torch.equal(traced(x), 2 * x)
