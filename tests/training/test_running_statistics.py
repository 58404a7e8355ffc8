"""Freezing, holding and recalibrating the statistics of torch's and normreg's BatchNorm layers."""

import copy
import pickle

import pytest
import torch
from torch import nn

import normreg
from normreg.training import running_statistics


def model_of(library, device):
    """A convolution between BatchNorm layers, one of which has no parameters and the cumulative average."""
    torch.manual_seed(1)
    act = normreg.BatchNormAct2d(3) if library is normreg else nn.BatchNorm2d(3)
    layers = [act, nn.Conv2d(3, 4, 1), library.BatchNorm2d(4, affine=False, momentum=None), nn.Dropout(0.0)]
    return nn.Sequential(*layers).to(device)


libraries = pytest.mark.parametrize("library", [nn, normreg], ids=["torch", "normreg"])


def batches(device, number=3):
    return [torch.randn(5, 3, 2, 2, device=device) * 2 + i for i in range(number)]


def buffers(model):
    return [buffer.clone() for buffer in model.buffers()]


def state(model):
    """Buffers, flags and hooks that a utility could leave changed."""
    flags = [
        (
            m.training,
            getattr(m, "momentum", 0),
            getattr(m, "track_running_stats", 0),
            len(m._forward_hooks),
            len(m._forward_pre_hooks),
            len(m._forward_hooks_always_called),
        )
        for m in model.modules()
    ]
    return [b.tolist() for b in model.buffers()], flags, [p.requires_grad for p in model.parameters()]


@libraries
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "statistics alone"])
def test_frozen_layers_stay_in_evaluation(device, library, affine):
    model = model_of(library, device)
    model(batches(device)[0])
    model[0].bias.requires_grad_(False)  # by somebody else, who is to find it so
    before = state(model)
    expected = copy.deepcopy(model).eval()
    assert normreg.freeze_batch_norm(model, affine=affine) == 2
    assert model[0].weight.requires_grad is not affine
    x = batches(device)[1]
    for training in (True, False):
        model.train(training)
        assert torch.equal(model(x), expected(x))
        assert model[0].training is model[2].training is False
    assert normreg.freeze_batch_norm(model, affine=not affine) == 0
    assert model[0].weight.requires_grad is affine
    assert normreg.unfreeze_batch_norm(model.train()) == 2
    assert state(model) == before
    assert normreg.unfreeze_batch_norm(model) == 0
    model(x)
    assert not torch.equal(model[0].running_mean, expected[0].running_mean)


@libraries
def test_frozen_layers_are_copied_pickled_and_replaced(device, library):
    model = model_of(library, device)
    normreg.freeze_batch_norm(model)
    x = batches(device)[0]
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        normreg.replace(twin)
        torch.testing.assert_close(twin.train()(x), expected)
        assert normreg.unfreeze_batch_norm(twin) == 2
        before = buffers(twin)
        twin(x)
        assert not torch.equal(buffers(twin)[0], before[0])
        normreg.freeze_batch_norm(twin)
    assert torch.equal(model(x), expected)


def test_frozen_layers_compile(device):
    model = nn.Sequential(normreg.BatchNorm2d(3), nn.ReLU()).to(device)
    normreg.freeze_batch_norm(model)
    x = batches(device)[0]
    expected, before = model(x), buffers(model)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
    assert all(map(torch.equal, buffers(model), before))
    normreg.unfreeze_batch_norm(model)
    assert model[0].training


def test_a_failing_forward_leaves_the_flag(device):
    model = model_of(normreg, device)
    normreg.freeze_batch_norm(model)
    with pytest.raises(ValueError, match="expected 4D input"):
        model(torch.zeros(3, 3, device=device))
    normreg.unfreeze_batch_norm(model)
    assert model[0].training


def test_layers_without_statistics_cannot_be_frozen(device):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False)).to(device)
    before = state(model)
    with pytest.raises(ValueError, match=r"running statistics, got BatchNorm1d\(3.*leave it out"):
        normreg.freeze_batch_norm(model)
    assert state(model) == before


@libraries
def test_held_statistics_do_not_move(device, library):
    model = model_of(library, device)
    before, x = state(model), batches(device)[1]
    expected = copy.deepcopy(model)(x)
    with normreg.running_statistics_held(model) as same:
        assert same is model
        with normreg.running_statistics_held(model[0]), pytest.raises(ValueError, match="expected 4D input"):
            model(x[0])
        torch.testing.assert_close(model(x), expected)  # a cumulative average has kernels of its own
        model.eval()
        evaluated = model(x)
        model.train()
        x.requires_grad_()
        model(x).sum().backward()
    assert state(model) == before
    assert torch.equal(evaluated, copy.deepcopy(model).eval()(x))
    model(x)
    assert model[0].num_batches_tracked.item() == 1


def test_statistics_are_held_until_an_exception(device):
    model = model_of(nn, device)
    before = state(model)

    def step():
        with normreg.running_statistics_held(model):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step()
    assert state(model) == before


@libraries
def test_recalibration_is_the_average_over_the_loader(device, library):
    model = model_of(library, device)
    model[0].eval()
    flags = [module.training for module in model.modules()]
    model[2].running_mean.fill_(9.0)
    loader = batches(device)
    identities = [id(buffer) for buffer in model.buffers()]
    assert normreg.recalibrate_batch_norm(model, [(x, "target") for x in loader]) == 3
    expected = torch.stack([x.mean((0, 2, 3)) for x in loader]).mean(0)
    torch.testing.assert_close(model[0].running_mean, expected)
    expected = torch.stack([x.var((0, 2, 3)) for x in loader]).mean(0)
    torch.testing.assert_close(model[0].running_var, expected)
    assert model[2].num_batches_tracked.item() == 3
    assert [module.training for module in model.modules()] == flags
    assert (model[0].momentum, model[2].momentum) == (0.1, None)
    assert [id(buffer) for buffer in model.buffers()] == identities
    assert not any(t.requires_grad for t in model.buffers())


def test_recalibration_leaves_frozen_and_held_layers(device):
    model = model_of(normreg, device)
    model(batches(device)[0])
    normreg.freeze_batch_norm(model[0])
    before = buffers(model[0])
    normreg.recalibrate_batch_norm(model, batches(device))
    assert all(map(torch.equal, buffers(model[0]), before))
    assert model[2].num_batches_tracked.item() == 3
    before = buffers(model)
    with normreg.running_statistics_held(model):
        normreg.recalibrate_batch_norm(model, batches(device))
    assert all(map(torch.equal, buffers(model), before))


def failing(device):
    yield batches(device)[0]
    raise OSError("no such file")


BAD = {
    "empty": (lambda device: [], ValueError, "got an empty one"),
    "fails": (failing, OSError, "no such file"),
    "another shape": (lambda device: [*batches(device), torch.zeros(2, 3, device=device)], ValueError, "4D"),
    "nan": (lambda device: [torch.full((2, 3, 2, 2), float("nan"), device=device)], ValueError, "finite"),
    "no loader": (lambda device: None, TypeError, "iterable of batches, got NoneType: pass"),
}


@pytest.mark.parametrize(("loader", "kind", "message"), BAD.values(), ids=BAD)
def test_a_bad_loader_changes_nothing(device, loader, kind, message):
    model = model_of(normreg, device)
    model(batches(device)[0])
    model[3].eval()
    before = state(model)
    with pytest.raises(kind, match=message):
        normreg.recalibrate_batch_norm(model, loader(device))
    assert state(model) == before


def test_a_bar_on_a_terminal(device, monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setattr(running_statistics.sys.stderr, "isatty", lambda: True, raising=False)
    model = model_of(normreg, device)
    for progress in (True, False):
        normreg.recalibrate_batch_norm(model, batches(device), progress=progress)
        assert ("Running statistics" in capsys.readouterr().err) is progress


def test_models_without_batch_norm(device):
    model = nn.Linear(2, 2)
    assert normreg.freeze_batch_norm(model) == normreg.unfreeze_batch_norm(model) == 0
    assert normreg.recalibrate_batch_norm(model, [torch.zeros(1, 2)]) == 0
    for utility in (normreg.freeze_batch_norm, normreg.unfreeze_batch_norm):
        with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got list"):
            utility([model])
