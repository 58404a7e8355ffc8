"""Frozen BatchNorm layers under what else changes, copies or calls them."""

import copy
import multiprocessing
import pickle
import threading

import pytest
import torch
from foreign_layers import TimmBatchNormAct2d
from support.processes import begun
from torch import nn
from torch.nn.utils import parametrize

import normreg
from normreg.kernels import cpu
from normreg.nn.frozen import is_frozen

LAYERS = {
    "torch.nn": lambda: nn.BatchNorm2d(3),
    "normreg": lambda: normreg.BatchNorm2d(3),
    "cumulative": lambda: normreg.BatchNorm2d(3, momentum=None),
    "with an activation": lambda: normreg.BatchNormAct2d(3),
    "torch's synchronised": lambda: nn.SyncBatchNorm(3),
    "synchronised": lambda: normreg.SyncBatchNorm(3),
    "timm's": lambda: TimmBatchNormAct2d(3),
    "timm's, replaced": lambda: replaced(TimmBatchNormAct2d(3)),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def replaced(layer):
    model = nn.Sequential(layer)
    normreg.replace(model)
    return model[0]


def replica(layer):
    """What DataParallel calls on one of its devices."""
    twin, copied = layer._replicate_for_data_parallel(), copy.deepcopy(layer)
    twin._parameters, twin._buffers, twin._modules = copied._parameters, copied._buffers, copied._modules
    return twin


def images(device):
    return torch.randn(4, 3, 5, 5, device=device)


def model_of(make, device):
    """A model with statistics, and the same in evaluation."""
    torch.manual_seed(1)
    model = nn.Sequential(make(), nn.Conv2d(3, 3, 1)).to(device)
    model[0].running_mean.uniform_(-1, 1)
    model[0].running_var.uniform_(0.5, 2)
    return model, copy.deepcopy(model).eval()


def assert_frozen(model, expected, device):
    """The layer computes as the expected model's in evaluation, whatever is said."""
    x = images(device)
    for training in (True, False, True):
        before = [b.clone() for b in model.buffers()]
        assert_same(model.train(training)(x), expected(x))
        assert all(map(torch.equal, before, model.buffers()))


def assert_same(y, expected):
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def assert_thawed(model, device):
    """The layer normalises by the batch again, and moves its statistics."""
    before = model[0].running_mean.clone()
    model.train()(images(device))
    assert model[0].training
    assert not torch.equal(before, model[0].running_mean)


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
