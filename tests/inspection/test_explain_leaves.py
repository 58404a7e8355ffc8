"""`explain` leaves everything as it was; scripted, compiled and transformed models; other threads."""

import copy
import threading

import pytest
import torch
from explained import cnn, rows
from torch import nn

import normreg
from normreg.functional import dispatch


class Messy(nn.Module):
    """Everything that a forward may do to its module."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.plain = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.words = nn.Embedding(10, 4, max_norm=0.1)
        self.register_buffer("step", torch.zeros(()))
        self.cache, self.history, self.table, self.count = torch.zeros(4), [], {}, 0

    def forward(self, x, indices):
        self.count += 1
        self.history.append(self.count)
        self.table[self.count] = x
        self.new = x
        self.step = self.step + 1
        self.cache.add_(1)
        self.register_buffer("late", x)
        x.mul_(2)
        y = self.drop(self.plain(self.norm(x)) + self.words(indices))
        self.eval()
        if self.history[-1] > 5:
            raise RuntimeError("too often")
        return y


def everything(model):
    """Every attribute and every entry of dictionaries and lists, and the bits and versions of tensors."""
    seen = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            seen[path, name] = id(value)
            entries = value.items() if isinstance(value, dict) else ()
            entries = enumerate(value) if isinstance(value, list) else entries
            for key, entry in [(None, value), *entries]:
                seen[path, name, key] = id(entry)
                if isinstance(entry, torch.Tensor):
                    seen[path, name, key, "tensor"] = (entry._version, entry.tolist(), id(entry.grad))
    return seen


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("replaced", [False, True], ids=["torch", "normreg"])
def test_nothing_is_left_behind(device, replaced, raises):
    model = Messy().to(device)
    model.cache = model.cache.to(device)
    if replaced:
        normreg.replace(model)
    fired = []
    model.norm.register_forward_hook(lambda *_: fired.append("forward"))
    model.norm.register_full_backward_hook(lambda *_: fired.append("backward"))
    model.norm.weight.grad = torch.ones(4, device=device)
    model.count = 5 if raises else 0
    x, indices = torch.randn(3, 4, device=device), torch.tensor([1, 2, 3], device=device)
    leaf = torch.randn(3, 4, device=device, requires_grad=True)
    part = leaf * 1
    before, state = everything(model), torch.get_rng_state()
    inputs = x.clone(), part.detach().clone(), x._version, part._version, part.grad_fn
    devices = torch.cuda.device_count() if device.type == "cuda" else 0
    states = [torch.cuda.get_rng_state(i) for i in range(devices)]
    call = torch.nn.Module.__call__
    for given in (x, part):
        if raises:
            with pytest.raises(RuntimeError, match=r"^too often$"):
                normreg.explain(model, given, indices)
        else:
            normreg.explain(model, given, indices)
    assert everything(model) == before
    assert model.training
    assert model.norm.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(torch.cuda.get_rng_state(i), s) for i, s in enumerate(states))
    assert torch.equal(x, inputs[0])
    assert torch.equal(part, inputs[1])
    assert (x._version, part._version, part.grad_fn) == inputs[2:]
    assert leaf.grad is None
    assert fired == ["forward"] * 2
    assert torch.nn.Module.__call__ is call
    assert dispatch.LISTENERS == []


def test_training_goes_on_as_without_it(device):
    """Training goes on also between a forward and its backward, for which torch's layers keep buffers."""
    results = []
    for explained in (False, True):
        torch.manual_seed(3)
        model = cnn().to(device)
        normreg.replace(model[6:])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for x in torch.randn(3, 2, 3, 6, 6, device=device):
            y = model(x)
            if explained:
                normreg.explain(model, x)
            y.square().sum().backward()
            optimizer.step()
        model.eval()
        y = model(x)
        if explained:
            normreg.explain(model.train(), x)
        y.sum().backward()
        results.append([y.detach(), *model.state_dict().values(), *(p.grad for p in model.parameters())])
    for explained, plain in zip(*reversed(results), strict=True):
        assert torch.equal(explained, plain)


@pytest.mark.filterwarnings("ignore:`torch.jit.")
def test_scripted_parts(device):
    model = nn.Sequential(torch.jit.script(nn.BatchNorm1d(4)), normreg.LayerNorm(4)).to(device)
    state = copy.deepcopy(model.state_dict())
    assert rows(normreg.explain(model, torch.randn(3, 4, device=device))) == [
        ("1", "normreg.LayerNorm", "kernel")
    ]
    for name, expected in state.items():
        assert torch.equal(model.state_dict()[name], expected)


@pytest.mark.parametrize("whole", [True, False], ids=["model", "part"])
def test_compiled_models_are_run_in_eager_mode(device, whole):
    torch._dynamo.reset()
    model = nn.Sequential(normreg.LayerNorm(4), normreg.Dropout()).to(device)
    if whole:
        model = torch.compile(model, backend="eager")
    else:
        model[0].compile(backend="eager")
    x = torch.randn(3, 4, device=device)
    report = normreg.explain(model, x)
    assert [call.path for call in report] == ["kernel", "kernel"]
    assert report.compiled
    assert str(report).endswith("without torch.compile: these are the paths of eager mode.")
    assert not normreg.explain(normreg.LayerNorm(4, device=device), x).compiled
    model(x)
    torch._dynamo.reset()


def test_other_threads_are_not_in_it(device):
    other, x = normreg.LayerNorm(4, device=device), torch.randn(0, 4, device=device)

    class Waiting(nn.Module):
        def forward(self, x):
            thread = threading.Thread(target=other, args=(x,))
            thread.start()
            thread.join()
            return x

    assert rows(normreg.explain(Waiting(), x)) == []


def test_meta_and_transformed_models(device):
    (call,) = normreg.explain(normreg.BatchNorm1d(4, device="meta"), torch.empty(3, 4, device="meta"))
    assert (call.path, call.why) == ("torch", "there is no kernel for meta tensors")
    with pytest.raises(AttributeError):
        normreg.explain(normreg.Dropout1d(), [1.0])
