"""`diagnose` leaves the model, its hooks and gradients, and what surrounds it as they were."""

import pytest
import torch
from diagnosed import network
from torch import nn

import normreg


class Messy(nn.Module):
    """A module whose forward changes itself and its input in every way."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = normreg.BatchNorm1d(4), normreg.Dropout(0.5)
        self.words = nn.Embedding(10, 4, max_norm=0.1)
        self.head, self.history, self.raises = nn.Linear(4, 2), [], False

    def forward(self, x, indices):
        self.history.append(x)
        self.new = x
        x.mul_(2)
        y = self.drop(self.norm(x) + self.words(indices))
        self.eval()
        if self.raises:
            raise RuntimeError("on purpose")
        return self.head(y)


def state(model):
    tensors = [*model.parameters(), *model.buffers()]
    return (
        [(id(t), t._version, t.tolist(), t.requires_grad) for t in tensors],
        [(id(p.grad), None if p.grad is None else (p.grad._version, p.grad.tolist())) for p in tensors],
        [(m.training, sorted(vars(m)), [id(v) for v in vars(m).values()]) for m in model.modules()],
        [{**m._forward_hooks, **m._backward_hooks, **m._forward_pre_hooks} for m in model.modules()],
        list(model.history),
    )


@pytest.mark.parametrize("where", ["nowhere", "model", "loss", "backward"])
def test_nothing_is_left_behind(device, where):
    model = Messy().to(device)
    model.raises = where == "model"
    model.head.weight.grad = torch.ones(2, 4, device=device)
    model.norm.register_forward_hook(lambda *_: None)
    leaf = torch.randn(3, 4, device=device, requires_grad=True)
    part = leaf * 1
    indices = torch.tensor([1, 2, 3], device=device)

    def raising(output):
        if where == "loss":
            raise RuntimeError("on purpose")
        if where == "backward":
            output.register_hook(lambda dy: 1 / 0)
        return output.sum()

    before, rng = state(model), torch.get_rng_state()
    call = nn.Module.__call__
    for x in (leaf.detach().clone(), leaf, part):
        values, version = x.tolist(), x._version
        if where == "nowhere":
            normreg.diagnose(model, x, indices, loss=raising)
        else:
            with pytest.raises((RuntimeError, ZeroDivisionError), match=r"on purpose|division"):
                normreg.diagnose(model, x, indices, loss=raising)
        assert (x.tolist(), x._version, x._backward_hooks) == (values, version, None)
    assert leaf.grad is None
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert nn.Module.__call__ is call
    part.sum().backward()  # the caller's graph is whole
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


def test_hooks_of_the_callers_inputs_do_not_fire(device):
    x = torch.randn(5, 6, device=device, requires_grad=True)
    part, fired = x * 1, []
    for tensor in (x, part):
        tensor.register_hook(fired.append)
        normreg.diagnose(network().to(device), tensor)
    assert fired == []


def test_between_a_forward_and_its_backward(device):
    gradients = []
    for diagnosed in (True, False):
        torch.manual_seed(0)
        model = network().to(device)
        x = torch.randn(5, 6, device=device)
        y = model(x).square().sum()
        if diagnosed:
            normreg.diagnose(model, x)
        y.backward()
        gradients.append([p.grad for p in model.parameters()] + [*model.buffers()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_around_it(device, mode):
    model = network().to(device)
    with mode():
        x = torch.randn(5, 6, device=device)
        assert normreg.diagnose(model, x).layers[0].gradient.norm > 0
        assert x.is_inference() == (mode is torch.inference_mode)


def test_compiled_models_are_run_in_eager_mode(device):
    torch._dynamo.reset()
    model = network().to(device)
    x = torch.randn(5, 6, device=device)
    plain = normreg.diagnose(model, x)
    compiled = normreg.diagnose(torch.compile(model, backend="eager"), x)
    assert [vars(layer.gradient) for layer in compiled] == [vars(layer.gradient) for layer in plain]
