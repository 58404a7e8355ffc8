"""What users' tools make of a replaced model is what they make of torch's: copies, averages, files."""

import copy
import io
import multiprocessing
import sys

import pytest
import torch
import torch.nn as nn
from networks import of_images
from support.reference import leave_initial_values, outcome
from torch.nn.utils import parametrizations, parametrize, prune

import normreg


def network():
    torch.manual_seed(0)
    model = of_images(nn.BatchNorm2d(8), nn.ReLU(), nn.GroupNorm(2, 8))
    leave_initial_values(model)
    return model


def replaced():
    model = network()
    normreg.replace(model)
    return model


@pytest.fixture
def x(device):
    return torch.randn(6, 3, 4, 4, device=device)


def assert_alike(ours, theirs, x, tolerance=1e-3):
    """Results, gradients and what the call leaves in buffers."""
    near = dict(rtol=tolerance, atol=tolerance)
    y, torchs_y = ours(x), theirs(x)
    torch.testing.assert_close(y, torchs_y, **near)
    results = []
    for result, model in ((y, ours), (torchs_y, theirs)):
        model.zero_grad()
        result.square().mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        results.append(gradients | dict(model.named_buffers()))
    torch.testing.assert_close(*results, **near)


def parametrized_weight_norm(model):
    parametrizations.weight_norm(model[6], dim=None)


def parametrized_spectral_norm(model):
    torch.manual_seed(3)
    parametrizations.spectral_norm(model[5])


def old_weight_norm(model):
    nn.utils.weight_norm(model[6], dim=None)


def old_spectral_norm(model):
    torch.manual_seed(3)
    nn.utils.spectral_norm(model[5])


def pruned_globally(model):
    weights = [(model[1], "weight"), (model[5], "weight"), (model[6], "weight")]
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=0.3)


def pruned_for_good(model):
    pruned_globally(model)
    prune.remove(model[6], "weight")


def parametrization_removed(model):
    parametrized_weight_norm(model)
    parametrize.remove_parametrizations(model[6], "weight")


TOOLS = [
    parametrized_weight_norm,
    parametrized_spectral_norm,
    old_weight_norm,
    old_spectral_norm,
    pruned_globally,
    pruned_for_good,
    parametrization_removed,
]


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("first", ["tool", "replace"])
@pytest.mark.parametrize("tool", TOOLS)
def test_tools_that_change_weights(device, x, tool, first):
    theirs = network().to(device)
    tool(theirs)
    ours = (network() if first == "tool" else replaced()).to(device)
    tool(ours)
    if first == "tool":
        normreg.replace(ours)
    assert type(ours[1]) is normreg.BatchNorm2d
    assert_alike(ours, theirs, x)


def with_hooks(model, seen):
    for layer in (model[1], model[6]):
        layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
        layer.register_full_backward_hook(lambda _, dx, dy: seen.append(dx[0]))


def test_hooks(device, x):
    models, seen = (replaced().to(device), network().to(device)), ([], [])
    for pair in zip(models, seen, strict=True):
        with_hooks(*pair)
    assert_alike(*models, x)
    torch.testing.assert_close(*seen, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "average", [None, torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)], ids=["swa", "ema"]
)
def test_averages_of_a_model(device, x, average):
    averaged = []
    for model in (replaced().to(device), network().to(device)):
        kept = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=average, use_buffers=average is not None
        )
        optimizer = torch.optim.SGD(model.named_parameters(), lr=0.01)
        for _ in range(2):
            model(x).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            kept.update_parameters(model)
        torch.optim.swa_utils.update_bn([x, x], kept)
        averaged.append(kept)
    assert type(averaged[0].module[1]) is normreg.BatchNorm2d
    assert_alike(*averaged, x)


def under_no_grad(model):
    with torch.no_grad():
        return copy.deepcopy(model)


def with_a_default_device(model):
    with torch.device("meta"):
        return copy.deepcopy(model)


def saved_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def saved_by_the_names_of_its_classes(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.serialization.safe_globals([*{type(layer) for layer in model.modules()}, set]):
        return torch.load(file, weights_only=True)


def packaged(model):
    file = io.BytesIO()
    with torch.package.PackageExporter(file) as exporter:
        exporter.extern(["torch.**", "normreg.**"])
        exporter.save_pickle("model", "model.pkl", model)
    file.seek(0)
    return torch.package.PackageImporter(file).load_pickle("model", "model.pkl")


def emptied_and_assigned(model):
    state = copy.deepcopy(model.state_dict())
    empty = copy.deepcopy(model).to("meta").to_empty(device=model[0].weight.device)
    empty.load_state_dict(state, assign=True)
    return empty.requires_grad_()


COPIES = [
    copy.copy,
    under_no_grad,
    with_a_default_device,
    saved_whole,
    saved_by_the_names_of_its_classes,
    packaged,
    emptied_and_assigned,
]


@pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated:UserWarning")
@pytest.mark.parametrize("copied", COPIES)
def test_copies(device, x, copied):
    original = replaced().to(device)
    ours = copied(original)
    assert [type(layer) for layer in ours] == [type(layer) for layer in original]
    assert_alike(ours, network().to(device), x)


def test_a_copy_made_in_inference_mode(device, x):
    """It computes in that mode, and is not trained in another."""
    results, errors = [], []
    for model in (replaced().to(device), network().to(device)):
        with torch.inference_mode():
            copied = copy.deepcopy(model)
            results.append(copied(x))
        errors.append(outcome(copied, x))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)
    assert str(errors[0]) == str(errors[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_default_dtype(device, dtype):
    torch.set_default_dtype(dtype)
    try:
        layers = normreg.BatchNormAct2d(8), normreg.LayerNorm2d(8), normreg.DropoutAddLayerNorm(4)
        ours, theirs = replaced().to(device), network().to(device)
        assert_alike(
            ours, theirs, torch.randn(6, 3, 4, 4, device=device), 1e-3 if dtype.itemsize == 8 else 0.3
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for layer in layers for p in layer.parameters()} == {dtype}


def test_parameters_that_are_swapped(device, x):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        assert_alike(replaced().to(device, torch.float64), network().to(device, torch.float64), x.double())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_ensembles_and_gradients_of_samples(device, x):
    found = []
    for model in (replaced().to(device).eval(), network().to(device).eval()):
        others = [model, copy.deepcopy(model).double().float()]
        parameters, buffers = torch.func.stack_module_state(others)

        def of_sample(parameters, sample, model=model):
            return torch.func.functional_call(model, parameters, (sample[None],)).sum()

        of_one = {name: p.detach() for name, p in model.named_parameters()}
        together = torch.vmap(torch.func.functional_call, (None, (0, 0), None))(
            model, (parameters, buffers), (x,)
        )
        found.append((together, torch.vmap(torch.func.grad(of_sample), (None, 0))(of_one, x)))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_classes_of_users_are_registered_once():
    made = []

    class Registered(nn.LayerNorm):
        def __init_subclass__(cls):
            made.append(cls)

    before = nn.LayerNorm.__subclasses__()
    model = nn.Sequential(Registered(4), nn.LayerNorm(4))
    normreg.replace(model)
    assert type(model[0]) is Registered
    assert (made, nn.LayerNorm.__subclasses__()) == ([], before)


def _train_shared(model, x):
    model(x).sum().backward()
    with torch.no_grad():
        model[1].weight.add_(1)


@pytest.mark.interpreter
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")  # in a process with threads
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_models_shared_between_processes(method):
    if sys.platform == "win32":
        pytest.skip("there is no fork")
    model, x = replaced().share_memory(), torch.randn(2, 3, 4, 4)
    weight, counted = model[1].weight.detach().clone(), model[1].num_batches_tracked.item()
    process = multiprocessing.get_context(method).Process(target=_train_shared, args=(model, x))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert torch.equal(model[1].weight.detach(), weight + 1)
    assert model[1].num_batches_tracked.item() == counted + 1
