"""`diagnose`: numbers against autograd's own, flags, what it must leave alone, and what it refuses."""

import copy
import math
import re
import sys
from pathlib import Path

import pytest
import torch
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


def network(norm=normreg.BatchNorm1d):
    return nn.Sequential(nn.Linear(6, 8), norm(8), nn.ReLU(), nn.Linear(8, 3))


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
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4),
        nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 4), nn.RMSNorm(4),
    ).to(device)  # fmt: skip
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
    """A layer twice, one that returns tuples, one whose output is not used, one that returns its weight."""

    def __init__(self):
        super().__init__()
        self.norm, self.rnn, self.head = normreg.LayerNorm(4), nn.GRU(4, 4), nn.Linear(4, 2)
        self.scale = Weight()

    def forward(self, x, *, out):
        y, _ = self.rnn(self.norm(self.norm(x)) * self.scale())
        self.head(y)
        return {"y": (y, x), "number": out, "count": torch.ones(2, dtype=torch.long)}


class Weight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self):
        return self.weight


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


def test_activation_checkpointing(device):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    model = Checkpointed().to(device)
    x = torch.randn(5, 6, device=device)
    for ours, plain in zip(normreg.diagnose(model, x), normreg.diagnose(model.inner, x), strict=True):
        close(ours.activation.norm, plain.activation.norm, 1e-5)
        close(ours.gradient.norm, plain.gradient.norm)
    assert model.inner[1].num_batches_tracked == 0


# Flags


def deep(gain, layers=24, width=64):
    model = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers)))
    normreg.init.kaiming_(model)
    with torch.no_grad():
        for module in model:
            module[0].weight.mul_(gain)
    return model


@pytest.mark.parametrize(
    ("gain", "expected"),
    [(1.0, set()), (0.5**0.5, {"vanishing activation", "vanishing gradient"}),
     (2.0, {"exploding activation", "exploding gradient"})],
)  # fmt: skip
def test_vanishing_and_exploding(device, gain, expected):
    report = normreg.diagnose(deep(gain).to(device), torch.randn(64, 64, device=device))
    assert {flag for layer in report for flag in layer.flags} == expected
    assert report.flagged == tuple(layer for layer in report if layer.flags)
    if expected:
        assert any("activation" in flag for flag in report.layers[-1].flags)
        assert any("gradient" in flag for flag in report.layers[0].flags)
        assert not any("activation" in flag for flag in report.layers[0].flags)
        loose = normreg.diagnose(
            deep(gain).to(device), torch.randn(64, 64, device=device), vanishing=1e-30, exploding=math.inf
        )
        assert loose.flagged == ()


def test_what_is_not_finite_explodes(device):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(device)
    with torch.no_grad():
        model[1].bias.fill_(math.nan)
    report = normreg.diagnose(model, torch.ones(2, 4, device=device))
    assert report.layers[1].flags[0] == "exploding activation"
    assert "loss nan" in str(report)


def test_dead_layers(device):
    model = network().to(device)
    with torch.no_grad():
        model[1].bias.fill_(-100)
    x = torch.randn(5, 6, device=device)
    flags = [layer.flags for layer in normreg.diagnose(model, x)]
    assert flags[:3] == [("dead",)] * 3  # two gradients, then the activations
    assert flags[3] == ()
    dropped = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Dropout(0.9), nn.Linear(512, 2)).to(device)
    x = torch.randn(5, 8, device=device)
    assert normreg.diagnose(dropped, x).flagged == ()
    assert [layer.name for layer in normreg.diagnose(dropped, x, dead=0.9).flagged] == ["2"]


def test_zeroed_residual_branches_are_dead(device):
    model = network(normreg.BatchNorm1d).to(device)
    normreg.init.zero_residual_(model, nn.Sequential)
    first, norm, *_ = normreg.diagnose(model, torch.randn(5, 6, device=device))
    assert (first.flags, norm.flags) == (("dead",), ("dead",))
    assert (norm.activation.zeros, norm.activation.norm) == (1, 0)


# What is left alone


class Messy(nn.Module):
    """Everything that a forward may do to its module and its input."""

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


# What it prints, draws and refuses


def test_printed(device):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU()).to(device)
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    report = normreg.diagnose(model, torch.tensor([[3.0, -4.0]], device=device), loss=lambda y: y.sum())
    assert str(report) == (
        "2 layers, 0 flagged; loss 3\n"
        "name  layer            y       mean of y  variance of y  norm of y  mean of dy  variance of dy"
        "  norm of dy  flags\n"
        "----  ---------------  ------  ---------  -------------  ---------  ----------  --------------"
        "  ----------  -----\n"
        "0     torch.nn.Linear  [1, 2]  -5.0e-01   1.2e+01        5.0e+00    5.0e-01     2.5e-01"
        "         1.0e+00\n"
        "1     torch.nn.ReLU    [1, 2]  1.5e+00    2.2e+00        3.0e+00    1.0e+00     0.0e+00"
        "         1.4e+00"
    )
    assert str(normreg.diagnose(Weight().to(device))).splitlines()[0].startswith("1 layer, 0 flagged")


def test_the_example_of_the_readme(capsys):
    """Its numbers are those of one version of torch; layers, shapes and flags are those of any."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    code, shown = re.search(
        r"## What passes through a model\n\n```python\n(.*?)```\n\n```\n(.*?)```", readme, re.DOTALL
    ).groups()
    exec(code, {})
    words = [re.sub(r"-?\d\.\d+(e[+-]\d+)?", "#", re.sub(" +", " ", line)) for line in (
        *capsys.readouterr().out.splitlines(), "...")]  # fmt: skip
    for line in shown.splitlines():
        assert re.sub(r"-?\d\.\d+(e[+-]\d+)?", "#", re.sub(" +", " ", line)) in words


def test_plotted(device, tmp_path):
    pytest.importorskip("matplotlib")
    report = normreg.diagnose(deep(2.0).to(device), torch.randn(64, 64, device=device))
    path = tmp_path / "report.png"
    report.plot(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileNotFoundError, match=r"expected a folder to write into, there is no .*: make it"):
        report.plot(tmp_path / "nowhere" / "report.png")


def test_without_matplotlib(device, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = normreg.diagnose(network().to(device), torch.randn(5, 6, device=device))
    with pytest.raises(
        ModuleNotFoundError, match=r"expected matplotlib to draw with, .*pip install matplotlib"
    ):
        report.plot(tmp_path / "report.png")


W = torch.ones(1)


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        ((), {}, TypeError, r"inputs that torch.nn.Linear is called with, got others .*diagnose\(model, x\)"),
        ((2,), dict(loss=W), TypeError, "loss to be a function of the model's output, got Tensor: pass"),
        ((2,), dict(loss=lambda y: y), ValueError,
         r"one element that requires a gradient, got a tensor of shape \[3, 2\]: pass such as"),
        ((2,), dict(loss=lambda y: 1.0), ValueError, "requires a gradient, got float: pass such as loss="),
        ((2,), dict(loss=lambda y: y.sum().detach()), ValueError, r"shape \[\] without a gradient: pass"),
        ((2,), dict(vanishing=2), ValueError, "vanishing to be a number above 0 and at most 1, got 2: leave"),
        ((2,), dict(exploding=math.nan), ValueError, "exploding to be a number above 1 .*got nan"),
        ((2,), dict(dead="all"), ValueError, "dead to be a number above 0 and at most 1, got 'all'"),
    ],
)  # fmt: skip
def test_errors(inputs, options, error, message):
    with pytest.raises(error, match=message):
        normreg.diagnose(nn.Linear(2, 2), *(torch.ones(3, size) for size in inputs), **options)


def test_errors_of_models():
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got Tensor"):
        normreg.diagnose(torch.ones(2))
    with pytest.raises(ValueError, match="call the model once before diagnose"):
        normreg.diagnose(nn.LazyLinear(3), torch.ones(2, 2))
