"""Frozen BatchNorm layers: copied, called by threads, replaced, converted, derived from, parametrized."""

import copy
import pickle
import threading

import pytest
import torch
from frozen_layers import LAYERS, assert_frozen, assert_thawed, every_layer, images, model_of
from torch import nn
from torch.nn.utils import parametrize

import normreg
from normreg.kernels import cpu


def replica(layer):
    """What DataParallel calls on one of its devices."""
    twin, copied = layer._replicate_for_data_parallel(), copy.deepcopy(layer)
    twin._parameters, twin._buffers, twin._modules = copied._parameters, copied._buffers, copied._modules
    return twin


def runs_here(make):
    return make is not LAYERS["torch's synchronised"]  # on a GPU alone, with ranks, in training


@every_layer
def test_copies_are_frozen_and_thaw_by_themselves(device, make):
    model, expected = model_of(make, device)
    cls = type(model[0])
    normreg.freeze_batch_norm(model)
    copies = [copy.deepcopy(model), nn.Sequential(replica(model[0]), model[1])]
    if make not in (LAYERS["timm's"], LAYERS["timm's, replaced"]):  # whose stand-in cannot be imported
        copies += [pickle.loads(pickle.dumps(model, protocol)) for protocol in (2, pickle.HIGHEST_PROTOCOL)]
    for twin in copies:
        assert_frozen(twin, expected, device)
        assert normreg.unfreeze_batch_norm(twin) == 1
        assert type(twin[0]) is cls
        if runs_here(make):
            assert_thawed(twin, device)
        assert_frozen(model, expected, device)


@every_layer
def test_a_frozen_layer_says_it_is_of_its_class(device, make):
    model, _ = model_of(make, device)
    cls, text = type(model[0]), repr(model)
    normreg.freeze_batch_norm(model)
    frozen = type(model[0])
    names = "__module__", "__name__", "__qualname__", "__doc__"
    assert [getattr(frozen, name) for name in names] == [getattr(cls, name) for name in names]
    assert isinstance(model[0], cls)
    assert repr(model) == text
    assert torch.fx.Tracer().is_leaf_module(model[0], "0") == torch.fx.Tracer().is_leaf_module(cls(3), "0")


@every_layer
def test_threads(device, monkeypatch, make):
    """No call changes what another reads."""
    monkeypatch.setattr(cpu, "KERNELS", None)  # the interpreter runs in one thread
    model, expected = model_of(make, device)
    normreg.freeze_batch_norm(model)
    x, wrong = images(device), []
    expected, before = expected(x), [b.clone() for b in model.buffers()]

    def calls():
        for _ in range(20):
            if not torch.allclose(model(x), expected, rtol=1e-5, atol=1e-5):
                wrong.append(1)

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(map(torch.equal, before, model.buffers()))
    normreg.unfreeze_batch_norm(model)
    assert model[0].training


def test_flags_set_meanwhile_hold_afterwards(device):
    model, _ = model_of(LAYERS["normreg"], device)
    normreg.freeze_batch_norm(model.train())
    model.eval()
    assert not model[0].training
    normreg.unfreeze_batch_norm(model)
    assert not model[0].training
    normreg.freeze_batch_norm(model)
    model.train()
    assert not model[0].training
    normreg.recalibrate_batch_norm(model, [images(device)])  # which sets flags, and gives them back
    normreg.unfreeze_batch_norm(model)
    assert model[0].training


@pytest.mark.parametrize("make", [LAYERS["torch.nn"], LAYERS["timm's"]], ids=["torch.nn", "timm's"])
def test_replace_and_restore(device, make):
    model, expected = model_of(make, device)
    cls = type(model[0])
    normreg.freeze_batch_norm(model)
    frozen = type(model[0])
    assert [change.name for change in normreg.replace(model).changed] == ["0"]
    assert_frozen(model, expected, device)
    assert normreg.replace(model).changed == ()
    (change,) = normreg.restore(model).changed
    assert change.name == "0"
    assert type(model[0]) is frozen
    assert_frozen(model, expected, device)
    normreg.replace(model)
    normreg.unfreeze_batch_norm(model)
    assert type(model[0]) is normreg.models.registry.counterpart(cls)
    assert_thawed(model, device)
    normreg.freeze_batch_norm(model)
    normreg.restore(model)
    normreg.unfreeze_batch_norm(model)
    assert type(model[0]) is cls


def test_layers_without_a_counterpart_are_not_named_in_the_report(device):
    for make in ("with an activation", "synchronised"):
        model, _ = model_of(LAYERS[make], device)
        normreg.freeze_batch_norm(model)
        assert normreg.replace(model).skipped == ()


@pytest.mark.parametrize("make", [m for n, m in LAYERS.items() if "timm" not in n and "torch's" not in n])
def test_conversion_to_synchronised_layers(device, make):
    model, expected = model_of(make, device)
    normreg.freeze_batch_norm(model)
    normreg.convert_sync_batchnorm(model)
    assert isinstance(model[0], normreg.SyncBatchNorm)
    assert_frozen(model, expected, device)
    assert normreg.unfreeze_batch_norm(model) == 1
    assert type(model[0]) in (normreg.SyncBatchNorm, normreg.SyncBatchNormAct)
    assert model[0].weight.requires_grad
    assert_thawed(model, device)


@pytest.mark.parametrize("make", [LAYERS["torch.nn"], LAYERS["normreg"]], ids=["torch.nn", "normreg"])
def test_a_class_derived_since_is_thawed(device, make):
    """As by fully_shard: the class stays, and nothing of it changes the layer any more."""
    model, expected = model_of(make, device)
    normreg.freeze_batch_norm(model)
    model[0].__class__ = derived = type("FSDPBatchNorm2d", (type(model[0]),), {})
    assert_frozen(model, expected, device)
    assert normreg.unfreeze_batch_norm(model) == 1
    assert type(model[0]) is derived
    assert_thawed(model, device)
    assert normreg.unfreeze_batch_norm(model) == 0
    assert normreg.freeze_batch_norm(model) == 1
    assert_frozen(model, copy.deepcopy(model).eval(), device)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


@pytest.mark.parametrize("first", ["parametrized", "frozen"])
def test_parametrizations(device, first):
    model, expected = model_of(LAYERS["torch.nn"], device)
    if first == "frozen":
        normreg.freeze_batch_norm(model)
    parametrize.register_parametrization(model[0], "weight", Halved())
    parametrize.register_parametrization(expected[0], "weight", Halved())
    if first == "parametrized":
        normreg.freeze_batch_norm(model)
    assert_frozen(model, expected, device)
    parametrize.remove_parametrizations(model[0], "weight")
    assert_frozen(model, expected, device)
    assert normreg.unfreeze_batch_norm(model) == 1
    assert type(model[0]) is nn.BatchNorm2d
    assert_thawed(model, device)


def test_a_class_with_a_list_of_its_subclasses(device):
    """It hears nothing of the class that a frozen layer gets."""
    derived = []

    class Listed(nn.BatchNorm2d):
        def __init_subclass__(cls):
            derived.append(cls)

    model, expected = model_of(lambda: Listed(3), device)
    normreg.freeze_batch_norm(model)
    assert_frozen(model, expected, device)
    assert derived == []
