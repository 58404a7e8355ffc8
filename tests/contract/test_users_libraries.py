"""Adapters, per-sample gradients and trainers: libraries where they are installed, else what they do."""

import copy
import importlib.util

import pytest
import torch
import torch.nn as nn
from networks import of_images
from support import hugging_face
from torch.utils.checkpoint import checkpoint

import normreg

of_libraries = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.drop, self.out = (
            nn.Linear(8, 8),
            nn.LayerNorm(8),
            nn.Dropout(0.0),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        return self.out(self.drop(self.norm(self.fc(x))))


def images():
    return of_images(nn.GroupNorm(2, 8), nn.ReLU(), nn.InstanceNorm2d(8, affine=True))


def of_both(make, device):
    """torch's model, and the same one replaced."""
    models = []
    for ours in (False, True):
        torch.manual_seed(0)
        models.append(make().to(device))
        if ours:
            normreg.replace(models[-1])
    return models


def library(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    with hugging_face.imported():
        return pytest.importorskip(name)


def assert_same(found):
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


class Adapted(nn.Module):
    """What LoRA makes of a linear layer, and what modules_to_save makes of a norm."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer, self.saved = layer, copy.deepcopy(layer)
        self.base_layer.requires_grad_(False)

    def forward(self, x):
        return self.saved(x)

    @property
    def weight(self):
        return self.saved.weight


@pytest.mark.parametrize("first", ["adapter", "replace"])
def test_adapters(device, first):
    """The copy that is trained is of the class that was replaced; the merged model has it in its place."""
    x, found = torch.randn(5, 8, device=device), []
    for ours in (False, True):
        torch.manual_seed(0)
        model = Block().to(device)
        if ours and first == "replace":
            normreg.replace(model)
        model.norm = Adapted(model.norm)
        if ours and first == "adapter":
            normreg.replace(model)
        y = model(x)
        y.square().mean().backward()
        assert (type(model.norm.saved) is normreg.LayerNorm) is ours
        model.norm = model.norm.saved
        found.append((y, model(x), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    assert_same(found)


@of_libraries
@pytest.mark.parametrize("first", ["adapter", "replace"])
def test_peft(device, first):
    peft = library("peft")
    adapters = [
        peft.LoraConfig(target_modules=["fc"], modules_to_save=["norm"], init_lora_weights=False),
        peft.LoraConfig(target_modules=["fc"], lora_dropout=0.0, init_lora_weights=False),
        peft.LNTuningConfig(target_modules=["norm"]),
    ]
    x = torch.randn(5, 8, device=device)
    for adapter in adapters:
        found = []
        for ours in (False, True):
            torch.manual_seed(0)
            model = Block().to(device)
            if ours and first == "replace":
                normreg.replace(model)
            torch.manual_seed(1)
            adapted = peft.get_peft_model(model, copy.deepcopy(adapter))
            if ours and first == "adapter":
                assert normreg.replace(adapted).changed
            y = adapted(x)
            y.square().mean().backward()
            gradients = {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
            found.append((y, gradients, adapted.state_dict(), adapted.merge_and_unload()(x)))
        assert_same(found)


class SampleGradients:
    """Hooks as opacus has them: what a layer was given, and the gradient of its result."""

    def __init__(self, model):
        self.inputs, self.found = {}, {}
        for name, layer in model.named_modules():
            if isinstance(layer, nn.LayerNorm):
                layer.register_forward_hook(lambda layer, inputs, y, name=name: self.keep(name, inputs[0]))
                layer.register_full_backward_hook(
                    lambda layer, dx, dy, name=name: self.add(layer, name, dy[0])
                )

    def keep(self, name, x):
        self.inputs[name] = x.detach()

    def add(self, layer, name, dy):
        x_hat = nn.functional.layer_norm(self.inputs[name], layer.normalized_shape, eps=layer.eps)
        self.found[name] = dy * x_hat, dy


def test_hooks_of_gradients_of_samples(device):
    x, found = torch.randn(6, 3, 4, 4, device=device), []
    for model in of_both(images, device):
        hooks = SampleGradients(model)
        model(x).square().mean().backward()
        torch.testing.assert_close(hooks.found["6"][0].sum(0), model[6].weight.grad)
        found.append(hooks.found)
    assert_same(found)


@of_libraries
@pytest.mark.parametrize("mode", ["hooks", "functorch"])
def test_opacus(device, mode):
    grad_sample = pytest.importorskip("opacus.grad_sample")
    x, found = torch.randn(6, 3, 4, 4, device=device), []
    for model in of_both(images, device):
        wrapped = grad_sample.wrap_model(model, grad_sample_mode=mode)
        wrapped(x).square().sum().backward()
        found.append({name: p.grad_sample for name, p in model.named_parameters()})
    assert_same(found)


def two_steps(model, x, prepared=lambda *given: given, backward=torch.Tensor.backward):
    """As trainers have them, with activation checkpointing and clipped gradients."""
    model, optimizer = prepared(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    for _ in range(2):
        backward(checkpoint(model, x, use_reentrant=False).square().mean())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def test_a_trainers_loop(device):
    x = torch.randn(6, 3, 4, 4, device=device)
    assert_same([two_steps(model, x) for model in of_both(images, device)])


@of_libraries
def test_accelerate(device):
    accelerate = library("accelerate")
    x = torch.randn(6, 3, 4, 4, device=device)
    accelerator = accelerate.Accelerator(cpu=device.type == "cpu")
    assert_same([two_steps(m, x, accelerator.prepare, accelerator.backward) for m in of_both(images, device)])
