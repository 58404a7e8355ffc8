"""`diagnose`: flags, the printed table, the plot, and what it refuses."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from diagnosed import Weight, network
from torch import nn

import normreg


def deep(gain, layers=24, width=64):
    model = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers)))
    normreg.init.kaiming_(model)
    with torch.no_grad():
        for module in model:
            module[0].weight.mul_(gain)
    return model


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (1.0, set()),
        (0.5**0.5, {"vanishing activation", "vanishing gradient"}),
        (2.0, {"exploding activation", "exploding gradient"}),
    ],
)
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


def test_printed(device):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU()).to(device)
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    report = normreg.diagnose(model, torch.tensor([[3.0, -4.0]], device=device), loss=lambda y: y.sum())
    assert str(report) == (
        "2 layers, 0 flagged; loss 3\n"
        "name  layer   shape of y  y mean   y var   y norm  dy mean  dy var  dy norm  flags\n"
        "----  ------  ----------  -------  ------  ------  -------  ------  -------  -----\n"
        "0     Linear  [1, 2]      -5.0e-1  1.2e+1  5.0e+0  5.0e-1   2.5e-1  1.0e+0\n"
        "1     ReLU    [1, 2]      1.5e+0   2.2e+0  3.0e+0  1.0e+0   0.0e+0  1.4e+0"
    )
    assert str(normreg.diagnose(Weight().to(device))).splitlines()[0].startswith("1 layer, 0 flagged")


def test_the_example_of_the_page(capsys):
    """The page's layers, shapes and flags are those of any torch; the numbers are one version's."""
    page = (Path(__file__).parents[2] / "docs/inspection.md").read_text()
    pattern = r"## diagnose: what passes through a model\n\n```python\n(.*?)```\n```text\n(.*?)```"
    code, shown = re.search(pattern, page, re.DOTALL).groups()
    exec(code, {})
    words = [
        re.sub(r"-?\d\.\d+(e[+-]\d+)?", "#", re.sub(" +", " ", line))
        for line in (*capsys.readouterr().out.splitlines(), "...")
    ]
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
    monkeypatch.delitem(sys.modules, "normreg.inspection.picture", raising=False)
    monkeypatch.delattr("normreg.inspection.picture", raising=False)
    report = normreg.diagnose(network().to(device), torch.randn(5, 6, device=device))
    with pytest.raises(
        ModuleNotFoundError, match=r"expected matplotlib to draw with, .*pip install matplotlib"
    ):
        report.plot(tmp_path / "report.png")


W = torch.ones(1)


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        (
            (),
            {},
            TypeError,
            r"inputs that torch.nn.Linear is called with, and these are not .*diagnose\(model, x\)",
        ),
        ((2,), dict(loss=W), TypeError, "loss to be a function of the model's output, got Tensor: pass"),
        (
            (2,),
            dict(loss=lambda y: y),
            ValueError,
            r"one element that requires a gradient, got a tensor of shape \[3, 2\]: pass such as",
        ),
        ((2,), dict(loss=lambda y: 1.0), ValueError, "requires a gradient, got float: pass such as loss="),
        ((2,), dict(loss=lambda y: y.sum().detach()), ValueError, r"shape \[\] without a gradient: pass"),
        (
            (2,),
            dict(vanishing=2),
            ValueError,
            "vanishing to be a number above 0 and at most 1, got 2: it is the limit",
        ),
        ((2,), dict(exploding=math.nan), ValueError, "exploding to be a number above 1 .*got nan"),
        ((2,), dict(dead="all"), ValueError, "dead to be a number above 0 and at most 1, got 'all'"),
    ],
)
def test_errors(inputs, options, error, message):
    with pytest.raises(error, match=message):
        normreg.diagnose(nn.Linear(2, 2), *(torch.ones(3, size) for size in inputs), **options)


def test_errors_of_models():
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got Tensor"):
        normreg.diagnose(torch.ones(2))
    with pytest.raises(ValueError, match=r"call model\(x\) once before diagnose"):
        normreg.diagnose(nn.LazyLinear(3), torch.ones(2, 2))
