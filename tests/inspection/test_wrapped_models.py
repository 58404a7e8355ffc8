"""`explain` and `diagnose` on models that others have wrapped, parametrized, pruned, averaged or shared."""

import programs
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import normreg


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


class LoraLinear(nn.Module):
    """A linear layer as peft wraps it."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.lora_dropout = base_layer.requires_grad_(False), nn.Dropout(0.25)
        self.lora_A, self.lora_B = nn.Linear(6, 2, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(self.lora_dropout(x)))


def lora(model):
    model[0] = LoraLinear(model[0])


WRAPPED = {
    "weight_norm": lambda m: parametrizations.weight_norm(m[0]),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m[0]),
    "orthogonal": lambda m: parametrizations.orthogonal(m[0]),
    "old weight_norm": lambda m: weight_norm(m[0]),
    "old spectral_norm": lambda m: spectral_norm(m[0]),
    "a parametrized norm": lambda m: parametrize.register_parametrization(m[1], "weight", Double()),
    "pruned": lambda m: prune.l1_unstructured(m[0], "weight", 0.5),
    "a pruned norm": lambda m: prune.random_unstructured(m[1], "weight", 0.5),
    "LoRA": lora,
    "shared": lambda m: m.share_memory(),
}
INSIDE = {"LoRA": [f"0.{name}" for name in ("base_layer", "lora_dropout", "lora_A", "lora_B")]}


def network(device):
    layers = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)
    return nn.Sequential(*layers).to(device)


def tensors(model):
    return {name: (id(x), x.tolist()) for name, x in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("norm", ["torch", "normreg"])
@pytest.mark.parametrize("how", WRAPPED)
def test_the_layers_of_a_wrapped_model(device, how, norm):
    model, x = network(device), torch.randn(5, 6, device=device)
    WRAPPED[how](model)
    model.to(device)
    if norm == "normreg":
        normreg.replace(model)
    before = tensors(model)
    report = normreg.diagnose(model, x)
    assert [layer.name for layer in report] == [*INSIDE.get(how, ["0"]), "1", "2", "3"]
    assert [layer.shape for layer in report][-4:] == [(5, 4), (5, 4), (5, 4), (5, 3)]
    assert tensors(model) == before
    names = {"LoRA": ["0.lora_dropout", "1"], "a parametrized norm": []}.get(how, ["1"])  # a class of its own
    if norm == "normreg":
        calls = normreg.explain(model, x)
        assert [(call.name, call.path) for call in calls] == [(name, "kernel") for name in names]
    assert tensors(model) == before
    first = report.layers[0].activation.norm
    expected = (model[0] if how != "LoRA" else model[0].base_layer)(x).detach().double().norm().item()
    assert first == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_the_layers_of_a_model_in_another(device, wrap):
    model, x = wrap(normreg.nn.LayerNorm(6).to(device)), torch.randn(5, 6, device=device)
    assert [(call.name, call.path) for call in normreg.explain(model, x)] == [("module", "kernel")]
    assert [layer.name for layer in normreg.diagnose(model, x)] == ["module"]


def test_a_model_of_peft(device):
    peft = pytest.importorskip("peft")
    model, x = network(device), torch.randn(5, 6, device=device)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], lora_dropout=0.25))
    normreg.replace(model)
    found = [call.name for call in normreg.explain(model, x)]
    assert found == ["base_model.model.0.lora_dropout.default", "base_model.model.1"]
    assert len(normreg.diagnose(model, x).layers) == 7


def test_in_several_processes_and_threads(tmp_path):
    assert programs.interpreted("shared_model", tmp_path / "log") == "as in one"
