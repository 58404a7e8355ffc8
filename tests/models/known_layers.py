"""Small layers of the classes of other libraries that normreg knows, and whether two compute alike."""

import importlib
import inspect
import types

import torch
from support.reference import error, leave_initial_values, unit

SIZE = 16
ARGUMENTS = {  # by the names of a constructor's parameters without a default
    "config": None,
    "drop_prob": 0.5,
    "num_groups": 4,
    "num_channels": SIZE,
    "normalized_shape": SIZE,
    "elementwise_affine": True,
    "num_features": SIZE,
    "n": SIZE,
}
SPECIAL = {
    "FalconH1RMSNormGated": dict(hidden_size=SIZE, n_groups=2),
    "FP32LayerNorm": dict(normalized_shape=SIZE),
    "SDCascadeLayerNorm": dict(normalized_shape=SIZE),
    "WuerstchenLayerNorm": dict(normalized_shape=SIZE),
    "BitGroupNormActivation": dict(
        config=types.SimpleNamespace(num_groups=4, hidden_act="relu"), num_channels=SIZE
    ),
    "ChameleonLayerNorm": dict(hidden_size=(4, SIZE)),
    "Emu3VQVAEGroupNorm": dict(num_groups=4, num_channels=SIZE),
}
MODES = ("bfloat16", "float32", "bfloat16 beside float32")


def built(cls):
    parameters = inspect.signature(cls).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
    if "hidden_size" in inspect.signature(cls).parameters:  # it may be None
        needed.append("hidden_size")
    given = {name: ARGUMENTS.get(name, SIZE) for name in needed}
    layer = cls(**SPECIAL.get(cls.__name__, given))
    leave_initial_values(layer)
    return layer


def samples(layer):
    names = "2d", "SDCascade", "Wuerstchen"
    if isinstance(layer, torch.nn.GroupNorm) or any(name in type(layer).__name__ for name in names):
        return torch.randn(3, SIZE, 4, 5)
    return torch.randn(3, 4, SIZE)


def step(layer, inputs, dy):
    torch.manual_seed(7)
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = layer(*inputs)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(y, [*inputs, *parameters], dy.to(y.dtype), allow_unused=True)
    return [y.detach(), *gradients]


def case_of(path, mode):
    """A layer of the class, inputs and an incoming gradient."""
    module, _, name = path.rpartition(".")
    layer = built(getattr(importlib.import_module(module), name))
    dtype = torch.bfloat16 if mode.startswith("bfloat16") else torch.float32
    inputs = [samples(layer).to(dtype) for _ in range(2 if "Gated" in name else 1)]
    if mode == "bfloat16":
        layer = layer.bfloat16()
    if "DropPath" in name:
        layer.eval()
    return layer, inputs, torch.randn_like(inputs[0])


def assert_equal(results, expected, mode, path):
    """Results and gradients of a step agree within rounding, in dtype and shape."""
    for ours, before in zip(results, expected, strict=True):
        if before is not None:
            seen = (path, mode, ours.dtype, before.dtype)
            assert (ours.dtype, ours.shape) == (before.dtype, before.shape), seen
            rounded_to = torch.bfloat16 if mode.startswith("bfloat16") else before.dtype
            assert error(ours, before.double()) <= 24 * unit(before.double(), rounded_to), seen
