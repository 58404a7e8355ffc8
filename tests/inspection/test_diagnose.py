"""`diagnose`: its numbers against autograd's own."""

import copy
import math
import re

import pytest
import torch
from diagnosed import Weight, network
from torch import nn
from torch.utils.checkpoint import checkpoint

import normreg
from normreg.inspection import measurement

# sums of float64 in another order; of a BatchNorm whose output was rounded to the dtype, that rounding
RTOL = 1e-9
ROUNDED = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def close(found, expected, rtol=RTOL, atol=1e-12):
    assert math.isclose(found, expected, rel_tol=rtol, abs_tol=atol), (found, expected)


def assert_statistics(found, x, rtol=RTOL, atol=1e-12):
    x = x.detach().double()
    close(found.mean, x.mean().item(), rtol, atol)
    close(found.variance, x.var(correction=0).item(), rtol, atol)
    close(found.norm, x.norm().item(), rtol, atol)
    close(found.zeros, (x == 0).double().mean().item())
    assert found.elements == x.numel()


@pytest.mark.parametrize("chunk", [measurement.CHUNK, 7])
def test_statistics_are_those_of_activations_and_gradients(device, monkeypatch, chunk):
    monkeypatch.setattr(measurement, "CHUNK", chunk)
    model = network(nn.LayerNorm).to(device)
    x, labels = torch.randn(5, 6, device=device), torch.tensor([0, 1, 2, 0, 1], device=device)
    loss = lambda y: nn.functional.cross_entropy(y, labels)  # noqa: E731
    report = normreg.diagnose(model, x, loss=loss)
    outputs, y = [], x
    for module in model:
        y = module(y)
        y.retain_grad()
        outputs.append(y)
    loss(y).backward()
    assert [layer.name for layer in report] == ["0", "1", "2", "3"]
    assert [layer.kind for layer in report] == [f"torch.nn.{type(module).__name__}" for module in model]
    assert report.loss == loss(y).item()
    for layer, y in zip(report, outputs, strict=True):
        assert layer.shape == tuple(y.shape)
        assert_statistics(layer.activation, y)
        assert_statistics(layer.gradient, y.grad)


def test_the_default_loss_sends_gradients_of_variance_1(device):
    model = nn.Linear(4, 512, device=device)
    for scale in (1.0, 1e-3):
        *_, last = normreg.diagnose(model, scale * torch.randn(64, 4, device=device))
        assert abs(last.gradient.variance - 1) < 6 * math.sqrt(2 / 2**15)
        assert abs(last.gradient.mean) < 6 / math.sqrt(2**15)
    both = [normreg.diagnose(model, torch.ones(2, 4, device=device)) for _ in range(2)]
    assert both[0] == both[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_batch_norm_is_computed_from_what_its_kernel_kept(device, monkeypatch, dtype, affine):
    model = normreg.BatchNorm2d(3, affine=affine, device=device, eps=1e-2)
    if affine:
        with torch.no_grad():
            model.weight.copy_(torch.tensor([0.5, 0.0, -2.0]))
            model.bias.copy_(torch.tensor([3.0, 0.0, -1.0]))
    x = 0.3 * torch.randn(8, 3, 5, 5, device=device).to(dtype).requires_grad_()
    read = []
    of = measurement.Moments.of
    monkeypatch.setattr(measurement.Moments, "of", lambda x: (read.append(x), of(x))[1])
    (layer,) = normreg.diagnose(model, x)
    assert len(read) == 1  # the gradient
    found, y = layer.activation, copy.deepcopy(model)(x)
    if not affine:
        assert found.zeros == 0
        found = measurement.Statistics(found.mean, found.variance, (y == 0).float().mean().item(), 600)
    assert_statistics(found, y, rtol=ROUNDED[dtype], atol=ROUNDED[dtype] * 0.1)
    read.clear()
    normreg.diagnose(model.eval(), x)
    assert len(read) == 2


def test_torch_and_normreg_are_found_alike(device):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.Flatten(),
        nn.LayerNorm(64),
        nn.Linear(64, 4),
        nn.RMSNorm(4),
    ).to(device)
    ours = copy.deepcopy(model)
    normreg.replace(ours)
    x = torch.randn(4, 2, 6, 6, device=device)
    for a, b in zip(normreg.diagnose(model, x), normreg.diagnose(ours, x), strict=True):
        for s, t in ((a.activation, b.activation), (a.gradient, b.gradient)):
            # activations and gradients of about 1, each right to float32's rounding
            close(s.mean, t.mean, 1e-3, 1e-5)
            close(s.variance, t.variance, 1e-3, 1e-5)


def test_the_gradient_of_what_is_changed_in_place_afterwards(device):
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(device)
    inplace = copy.deepcopy(plain)
    inplace[1].inplace = True
    x = torch.randn(5, 4, device=device)
    assert [tuple(vars(layer).values()) for layer in normreg.diagnose(inplace, x)] == [
        tuple(vars(layer).values()) for layer in normreg.diagnose(plain, x)
    ]


class Several(nn.Module):
    """A model that calls a layer twice, with layers that return tuples, a weight, or an unused output."""

    def __init__(self):
        super().__init__()
        self.norm, self.rnn, self.head = normreg.LayerNorm(4), nn.GRU(4, 4), nn.Linear(4, 2)
        self.scale = Weight()

    def forward(self, x, *, out):
        y, _ = self.rnn(self.norm(self.norm(x)) * self.scale())
        self.head(y)
        return {"y": (y, x), "number": out, "count": torch.ones(2, dtype=torch.long)}


def test_modules_of_every_kind(device):
    model = Several().to(device)
    report = normreg.diagnose(model, torch.randn(3, 5, 4, device=device), out=7)
    assert [layer.name for layer in report] == ["norm", "norm, call 2", "scale", "rnn[0]", "rnn[1]", "head"]
    without = [layer.name for layer in report if layer.gradient is None]
    assert without == ["rnn[1]", "head"]
    assert model.scale.weight._backward_hooks in (None, {})


def test_a_loss_of_the_model_s_output(device):
    model = Several().to(device)
    x = torch.randn(3, 5, 4, device=device)
    report = normreg.diagnose(model, x, out=1, loss=lambda output: output["y"][0].square().mean())
    assert report.loss == pytest.approx(model(x, out=1)["y"][0].square().mean().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_models(device, dtype):
    model = network(normreg.LayerNorm).to(device, dtype)
    x = 300 * torch.ones(4, 6, device=device, dtype=dtype)
    report = normreg.diagnose(model, x)
    first = report.layers[0]
    assert_statistics(first.activation, model[0](x))  # whose squares float16 does not have
    assert all(math.isfinite(layer.gradient.norm) for layer in report)


def test_frozen_models_and_inputs_with_gradients(device):
    model = network().to(device).requires_grad_(False)
    x = torch.randn(5, 6, device=device)
    message = "expected the model to return a floating-point tensor that requires a gradient.* pass loss="
    with pytest.raises(ValueError, match=message):
        normreg.diagnose(model, x)
    assert all(layer.gradient.norm > 0 for layer in normreg.diagnose(model, x.requires_grad_()))
    model[3].requires_grad_()
    found = [layer.gradient is not None for layer in normreg.diagnose(model, x.detach())]
    assert found == [False, False, False, True]


class Checkpointed(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.first, self.inner, self.options = nn.Linear(6, 6), network(), options

    def forward(self, x):
        return checkpoint(self.inner, self.first(x), **self.options)


def test_activation_checkpointing(device):
    model = Checkpointed(use_reentrant=False).to(device)
    x = torch.randn(5, 6, device=device)
    inner = normreg.diagnose(model.inner, model.first(x))
    for ours, plain in zip([*normreg.diagnose(model, x)][1:], inner, strict=True):
        close(ours.activation.norm, plain.activation.norm, 1e-5)
        close(ours.gradient.norm, plain.gradient.norm)
    assert model.inner[1].num_batches_tracked == 0


def test_reentrant_checkpointing_is_named(device):
    """Its backward runs layers unseen, and gives gradients to all parameters or none."""
    model, x = Checkpointed(use_reentrant=True).to(device), torch.randn(5, 6, device=device)
    message = (
        "expected layers that run with gradients, got inner, a torch.nn.Sequential, in a checkpoint with "
        "use_reentrant=True, which runs it without them, and again in the backward: give the checkpoint "
        "use_reentrant=False, or turn checkpointing off meanwhile, in transformers by "
        "model.gradient_checkpointing_disable()"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        normreg.diagnose(model, x)
    del model.inner
    model.inner = nn.functional.relu  # a function
    with pytest.raises(ValueError, match="got a function, in a checkpoint with use_reentrant=True"):
        normreg.diagnose(model, x)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_a_checkpoint_without_gradients_is_named(device):
    model, x = Checkpointed(use_reentrant=True).to(device), torch.randn(5, 6, device=device)
    model.first = nn.Identity()
    message = r"a gradient, or several, got Tensor without one \(inner, a torch.nn.Sequential, ran without"
    with pytest.raises(ValueError, match=message):
        normreg.diagnose(model, x)


def test_a_model_without_values_is_named():
    message = "expected tensors with values, got one on the meta device from layer '0', a torch.nn.Linear"
    with torch.device("meta"), pytest.raises(ValueError, match=f"^{message}"):
        normreg.diagnose(network(), torch.ones(3, 6))
