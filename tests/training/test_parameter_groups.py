"""Parameter groups: every parameter once, and where."""

import sys

import pytest
import torch
from torch.nn.utils import parametrizations

import normreg
from normreg.training.kinds import NORM_NAME

NORMS = {
    **{
        f"torch.{name}": getattr(torch.nn, name)
        for name in ("LayerNorm", "RMSNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")
    },
    **{
        f"normreg.{name}": getattr(normreg, name)
        for name in (
            "LayerNorm",
            "LayerNorm1d",
            "LayerNorm2d",
            "LayerNorm3d",
            "RMSNorm",
            "RMSNorm2d",
            "BatchNorm1d",
            "BatchNorm2d",
            "BatchNorm3d",
        )
    },
    "torch.GroupNorm": lambda size: torch.nn.GroupNorm(2, size),
    "normreg.GroupNorm": lambda size: normreg.GroupNorm(2, size),
    "torch.InstanceNorm2d": lambda size: torch.nn.InstanceNorm2d(size, affine=True),
    "normreg.InstanceNorm1d": lambda size: normreg.InstanceNorm1d(size, affine=True),
}


class Owner(torch.nn.Module):
    """A layer with a weight whose role it does not say."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))


def split(model, **options):
    """Names of the decayed and of the other parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = normreg.parameter_groups(model, 0.1, **options)
    found = {group["weight_decay"]: [names[id(p)] for p in group["params"]] for group in groups}
    assert len(groups) == len(found)
    listed = [name for group in found.values() for name in group]
    assert sorted(listed) == sorted(names.values())
    return found.get(0.1, []), found.get(0.0, [])


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_norms_and_biases_are_not_decayed(make):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), make(4))
    decayed, others = split(model)
    assert decayed == ["0.weight"]
    assert others == [name for name, _ in model.named_parameters() if name != "0.weight"]


def test_layers_of_torch():
    decayed, others = split(torch.nn.TransformerEncoderLayer(8, 2))
    assert [name for name in decayed if "weight" not in name or "norm" in name] == []
    assert len(decayed) == 4
    assert "self_attn.in_proj_bias" in others
    decayed, others = split(torch.nn.LSTM(3, 4, 2))
    assert all(name.startswith("weight") for name in decayed)
    assert all(name.startswith("bias") for name in others)
    decayed, _ = split(
        torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Conv2d(2, 3, 1), torch.nn.PReLU())
    )
    assert decayed == ["0.weight", "1.weight", "2.weight"]


@pytest.mark.parametrize(
    ("name", "is_norm"),
    [
        (name, True)
        for name in (
            "LayerNorm2d",
            "RmsNorm",
            "LlamaRMSNorm",
            "BatchNormAct2d",
            "GroupNorm1",
            "LayerNormFp32",
            "LayerNormAct2dFp32",
            "EvoNorm2dS0a",
            "EvoNorm2dB0",
            "FilterResponseNormTlu2d",
            "FrozenBatchNorm2d",
        )
    ]
    + [(name, False) for name in ("NormalizedLinear", "Normalize", "NormFreeConv", "AttentionNormalizer")],
)
def test_names_of_classes(name, is_norm):
    assert bool(NORM_NAME.search(name)) == is_norm
    cls = type(name, (Owner,), {})
    assert split(cls()) == ((["weight"], []) if not is_norm else ([], ["weight"]))


def test_subclasses_are_what_they_inherit():
    class Affine(normreg.LayerNorm):
        pass

    assert split(Affine(4)) == ([], ["weight", "bias"])


def test_registered_classes(monkeypatch):
    monkeypatch.setattr(sys.modules["normreg.training.parameter_groups"], "_registered", set())

    @normreg.register_no_decay
    class Registered(Owner):
        pass

    assert split(torch.nn.Sequential(Registered(), Owner())) == (["1.weight"], ["0.weight"])
    with pytest.raises(
        TypeError, match=r"expected a subclass of torch\.nn\.Module, got Owner.*as in type\(layer\)"
    ):
        normreg.register_no_decay(Owner())


def test_no_decay_takes_classes_and_names():
    model = torch.nn.Sequential(
        torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4), Owner(), torch.nn.Linear(4, 4)
    )
    assert split(model, no_decay=torch.nn.Embedding)[0] == ["1.weight", "2.weight", "3.weight"]
    assert split(model, no_decay="2.weight")[0] == ["0.weight", "1.weight", "3.weight"]
    assert split(model, no_decay=[Owner, "[13].*"])[0] == ["0.weight"]


class Tied(torch.nn.Module):
    def __init__(self, *, norm=False):
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 4)
        self.out = torch.nn.Linear(4, 5)
        self.out.weight = self.embedding.weight
        self.first, self.second = (normreg.LayerNorm(4) for _ in range(2))
        self.second.weight = self.first.weight
        if norm:
            self.other = Owner()
            self.other.weight = self.first.weight


def test_tied_parameters_are_listed_once():
    assert split(Tied()) == (["embedding.weight"], ["out.bias", "first.weight", "first.bias", "second.bias"])
    shared = normreg.LayerNorm(4)
    assert split(torch.nn.Sequential(shared, shared)) == ([], ["0.weight", "0.bias"])


def test_tied_to_a_layer_without_decay_is_not_decayed():
    assert split(Tied(norm=True))[0] == ["embedding.weight"]
    for no_decay in (torch.nn.Embedding, torch.nn.Linear, "out.weight", "embedding.weight"):
        assert split(Tied(), no_decay=no_decay)[0] == []


def test_frozen_parameters_are_kept():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), normreg.LayerNorm(4))
    model[0].requires_grad_(False)
    assert split(model) == (["0.weight"], ["0.bias", "1.weight", "1.bias"])


def test_parametrized_layers():
    norm = parametrizations.spectral_norm(torch.nn.Linear(4, 4))
    weight = parametrizations.weight_norm(torch.nn.Linear(4, 4))
    decayed, others = split(torch.nn.Sequential(norm, weight, torch.nn.LayerNorm(4)))
    assert sorted(others) == ["0.bias", "1.bias", "2.bias", "2.weight"]
    assert len(decayed) == 3


@pytest.mark.parametrize("options", [dict(foreach=True), dict(fused=True)], ids=["foreach", "fused"])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_optimizers_take_them(device, optimizer, options):
    """Without gradients, a step changes decayed parameters alone."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), normreg.LayerNorm(4)).to(device)
    model.append(torch.nn.Linear(4, 4).to(device).requires_grad_(False))
    before = [p.detach().clone() for p in model.parameters()]
    step = getattr(torch.optim, optimizer)(normreg.parameter_groups(model, 0.5), lr=0.1, **options)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    step.step()
    changed = [not torch.equal(was, p) for was, p in zip(before, model.parameters(), strict=True)]
    assert changed == [True, False, False, False, False, False]


@pytest.mark.parametrize(
    ("model", "weight_decay", "options", "error", "message"),
    [
        ([torch.ones(2)], 0.1, {}, TypeError, "expected a torch.nn.Module, got list"),
        (torch.nn.ReLU(), 0.1, {}, ValueError, "expected a model with parameters, got one without"),
        (Owner(), -1, {}, ValueError, "expected weight_decay to be finite and at least 0, got -1"),
        (Owner(), float("nan"), {}, ValueError, "expected weight_decay to be finite"),
        (Owner(), 0.1, dict(no_decay=[Owner()]), TypeError, "no_decay to hold subclasses of .*Owner"),
        (Owner(), 0.1, dict(no_decay=[int]), TypeError, "subclasses of torch.nn.Module and names.*int"),
        (Owner(), 0.1, dict(no_decay=None), TypeError, "subclasses of torch.nn.Module and names.*None: pass"),
        (Owner(), 0.1, dict(no_decay="wieght"), ValueError, "got 'wieght', which none has"),
    ],
)
def test_errors(model, weight_decay, options, error, message):
    with pytest.raises(error, match=message):
        normreg.parameter_groups(model, weight_decay, **options)
