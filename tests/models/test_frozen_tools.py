"""Frozen BatchNorm layers under tools that compile, fuse, average, trace or move a model."""

import copy
import multiprocessing

import pytest
import torch
from frozen_layers import LAYERS, assert_frozen, assert_same, assert_thawed, images, model_of
from support.processes import begun
from torch import nn

import normreg
from normreg.nn.frozen import is_frozen


def test_compiled_calls_follow(device):
    model, expected = model_of(LAYERS["normreg"], device)
    torch._dynamo.reset()
    compiled, x = torch.compile(model, backend="aot_eager", fullgraph=True), images(device)
    model.train()
    assert not torch.allclose(compiled(x), expected(x), rtol=1e-3, atol=1e-3)
    expected.load_state_dict(model.state_dict())
    normreg.freeze_batch_norm(model)
    for training in (True, False, True):
        model.train(training)
        assert_same(compiled(x), expected(x))
    normreg.unfreeze_batch_norm(model)
    before = model[0].running_mean.clone()
    compiled(x)
    assert not torch.equal(before, model[0].running_mean)


def test_fused_models(device):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).to(device)
    model(images(device))
    expected = copy.deepcopy(model).eval()
    normreg.freeze_batch_norm(model)
    x = images(device)
    assert normreg.replace(model, fuse=True, example_inputs=x).fused
    assert_frozen(model, expected, device)
    normreg.restore(model)
    assert_frozen(model, expected, device)


def test_averaged_models(device):
    model, _ = model_of(LAYERS["normreg"], device)
    normreg.freeze_batch_norm(model)
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    average.update_parameters(model)
    average.module.load_state_dict(model.state_dict())
    assert_frozen(average.module, copy.deepcopy(model).eval(), device)


def test_a_traced_frozen_layer_is_in_evaluation(device):
    model, expected = model_of(LAYERS["torch.nn"], device)
    normreg.freeze_batch_norm(model)
    assert_frozen(torch.fx.symbolic_trace(model), expected, device)


@pytest.mark.filterwarnings("ignore:`torch.jit.")
def test_a_scripted_frozen_layer_is_in_evaluation(device):
    model, expected = model_of(LAYERS["torch.nn"], device)
    normreg.freeze_batch_norm(model)
    x = images(device)
    assert_same(torch.jit.script(model)(x), expected(x))


def test_lazy_layers_are_refused(device):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.LazyBatchNorm2d()).to(device)
    with pytest.raises(ValueError, match=r"got LazyBatchNorm2d.*call the model once before"):
        normreg.freeze_batch_norm(model)
    assert not any(map(is_frozen, model))


def _is_frozen_there(connection, model):
    connection.send([is_frozen(layer) and not layer.training for layer in model])


def test_another_process(device):
    model = nn.Sequential(nn.BatchNorm2d(3), normreg.BatchNorm2d(3))
    normreg.freeze_batch_norm(model)
    here, there = multiprocessing.Pipe()
    process = begun(_is_frozen_there, (there, model))
    assert here.poll(60)
    assert here.recv() == [True, True]
    process.join()


def test_held_by_two_at_once(device):
    """The first to let go leaves the layer to the other, and the last gives its flag back."""
    model, _ = model_of(LAYERS["normreg"], device)
    first, second = (normreg.running_statistics_held(model) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    before = model[0].running_mean.clone()
    model.train()(images(device))
    assert torch.equal(before, model[0].running_mean)
    second.__exit__(None, None, None)
    assert_thawed(model, device)
