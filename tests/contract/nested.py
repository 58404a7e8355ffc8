"""A model with every kind of layer in every kind of container, and what is compared of models."""

from collections import OrderedDict

import torch
from operations import torch_layer
from torch import nn

NESTED = {
    "stem.1": "LayerNorm",
    "stem.2": "RMSNorm",
    "blocks.0": "BatchNorm1d",
    "blocks.1.0": "Dropout",
    "heads.a": "BatchNorm2d",
    "heads.b.0": "BatchNorm3d",
    "drops.0": "Dropout1d",
    "drops.1": "Dropout2d",
    "drops.2": "Dropout3d",
    "drops.3": "AlphaDropout",
    "drops.4": "FeatureAlphaDropout",
    "groups.0": "GroupNorm",
    "groups.1": "InstanceNorm1d",
    "groups.2": "InstanceNorm2d",
    "groups.3": "InstanceNorm3d",
    "groups.4": "SyncBatchNorm",
}


class PlainNorm(nn.modules.batchnorm._BatchNorm):
    """A BatchNorm by its base class, but of a class without a counterpart in normreg."""


def nested(device):
    """A model with every kind of layer in every container, with hooks, attributes and frozen parts."""
    made = {path: torch_layer(kind, device)[0] for path, kind in NESTED.items()}
    model = nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(nn.Linear(6, 6), made["stem.1"], made["stem.2"]),
            blocks=nn.ModuleList([made["blocks.0"], nn.ModuleList([made["blocks.1.0"], nn.GELU()])]),
            heads=nn.ModuleDict({"a": made["heads.a"], "b": nn.Sequential(made["heads.b.0"], PlainNorm(2))}),
            drops=nn.ModuleList(module for path, module in made.items() if path.startswith("drops")),
            groups=nn.ModuleList(module for path, module in made.items() if path.startswith("groups")),
            last=PlainNorm(6),
        )
    ).to(device)
    norm = made["stem.1"]
    for module in (norm, made["blocks.0"], made["blocks.1.0"]):
        module.register_forward_pre_hook(lambda module, inputs: None)
        module.register_forward_hook(lambda module, inputs, output: None)
        module.register_full_backward_hook(lambda module, dx, dy: None)
        module.extra = {"tag": object()}
    norm.weight.requires_grad_(False)
    norm.bias.grad = torch.ones_like(norm.bias)
    made["heads.a"].eval()
    return model


def contents(model):
    """(where, object) of every attribute of every module, and of every entry of its dictionaries."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            yield f"{path}.{name}", value
            if isinstance(value, dict):
                yield from ((f"{path}.{name}[{key}]", entry) for key, entry in value.items())


def types(model):
    return {name: type(module) for name, module in model.named_modules()}


def run(model, x):
    """Output and gradients, for the same random numbers every time."""
    torch.manual_seed(5)
    x = x.detach().clone().requires_grad_()
    y = model(x)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    return [y.detach(), *torch.autograd.grad(y, wanted, torch.randn_like(y))]


def assert_all_equal(results, expected):
    for result, want in zip(results, expected, strict=True):
        assert torch.equal(result, want)


def outcome(report):
    return report.changed, report.skipped


class TunedLayerNorm(nn.LayerNorm):
    def forward(self, input):
        return super().forward(input) + 1


def with_forward_of_its_own():
    module = nn.LayerNorm(6)
    module.forward = lambda input: input * 3
    return module


def groups():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.GroupNorm(2, 6),
        nn.GELU(),
        nn.Conv2d(6, 4, 3, bias=False),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    )
