"""Every operation that normreg exports, a row each: its functions, and its layers.

The contract tests take their cases from here, by a filter or a column, so that a new operation is a row;
test_operations.py fails where one is missing. Rows under other names than their operation's are variants.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import formulas
import pytest
import torch
from reference import leave_initial_values

import normreg
from normreg.models.replace import COUNTERPARTS

OF_RANKS = {"sync_batch_norm"}  # which needs torch.distributed: in ranks_sync_batch_norm.py
OURS = SimpleNamespace(
    l2_penalty=normreg.l2_penalty,
    **{name: getattr(normreg.functional, name) for name in normreg.functional.__all__},
)
LIBRARIES = {"torch": formulas, "normreg": OURS}


@dataclass(frozen=True)
class Function:
    """A function of tensors: of a library, which is OURS or `formulas`, and inputs of these shapes.

    `call` takes the library's function, the inputs and options that are passed on.
    """

    name: str
    call: Callable
    shapes: tuple  # x first; few elements, for finite differences
    draws: bool = False  # takes a generator

    def __call__(self, library, *inputs, **options):
        return self.call(getattr(library, self.name), *inputs, **options)

    def inputs(self, device, dtype=torch.float32):
        return [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in self.shapes]

    def seeded(self, *inputs):
        """Ours, with the same mask every time."""
        generator = torch.Generator(inputs[0].device).manual_seed(4) if self.draws else None
        return self(OURS, *inputs, **(dict(generator=generator) if self.draws else {}))


@dataclass(frozen=True)
class Dropout(Function):
    """One that drops and does nothing else; `call` takes p as well."""

    leading: int | None = None  # how many dimensions name a decision; None: each element is one
    alpha: bool = False
    scaled: bool = True
    draws: bool = True


def as_they_are(f, *inputs):
    return f(*inputs)


def over_rows(f, x, *parameters):
    return f(x, x.shape[-1:], *parameters)


def over_planes(f, x, *parameters):
    return f(x, x.shape[-2:], *parameters)


def running(x, weight=None):
    """Running statistics of the dtype of the parameters."""
    like = dict(dtype=x.dtype if weight is None else weight.dtype, device=x.device)
    return [torch.arange(1.0, x.shape[1] + 1, **like) + 1 / 3 for _ in range(2)]


def without_statistics(f, x, *parameters):
    return f(x, None, None, *parameters, training=True)


def with_statistics(training):
    return lambda f, x, weight=None, bias=None: f(x, *running(x, weight), weight, bias, training)


def followed_by(act, training=True, **options):
    def call(f, x, weight=None, bias=None, residual=None):
        return f(x, *running(x, weight), weight, bias, training, act=act, residual=residual, **options)

    return call


def in_groups(groups):
    return lambda f, x, *parameters: f(x, groups, *parameters)


def instances(use_input_stats):
    return lambda f, x, weight, bias: f(x, *running(x, weight), weight, bias, use_input_stats)


def dropped(f, x, p=0.25, **options):
    return f(x, p, training=True, **options)


def everything(f, x, **options):
    return f(x, 1.0, training=True, **options)


def both(row_scale=None):
    """y + z * 2, so that one incoming gradient reaches both; of a layer scale behind the residual."""

    def call(f, x, residual, layer_scale, *parameters, **options):
        if row_scale is not None:
            options["row_scale"] = torch.tensor(row_scale, dtype=x.dtype, device=x.device)
        given = dict(p=0.4, prenorm=True, layer_scale=layer_scale, **options)
        y, z = f(x, residual, x.shape[-1:], *parameters, **given)
        return y + z * 2

    return call


def of_the_sum(f, x, residual, *parameters, **options):
    return f(x, residual, x.shape[-1:], *parameters, p=0.4, **options)


FUNCTIONS = {
    "layer_norm": Function("layer_norm", over_rows, ((4, 5), (5,), (5,))),
    "layer_norm over two dimensions": Function("layer_norm", over_planes, ((2, 3, 2), (3, 2), (3, 2))),
    "layer_norm of one row": Function("layer_norm", over_rows, ((6,), (6,), (6,))),
    "layer_norm without parameters": Function("layer_norm", over_rows, ((3, 5),)),
    "layer_norm without bias": Function("layer_norm", over_rows, ((3, 5), (5,))),
    "layer_norm_channels": Function("layer_norm_channels", as_they_are, ((2, 3, 2, 2), (3,), (3,))),
    "layer_norm_channels without parameters": Function("layer_norm_channels", as_they_are, ((2, 4, 3),)),
    "rms_norm": Function("rms_norm", over_rows, ((4, 5), (5,))),
    "rms_norm over two dimensions": Function("rms_norm", over_planes, ((2, 3, 2), (3, 2))),
    "rms_norm of one row": Function("rms_norm", over_rows, ((6,), (6,))),
    "rms_norm without weight": Function("rms_norm", over_rows, ((3, 5),)),
    "batch_norm": Function("batch_norm", without_statistics, ((5, 3), (3,), (3,))),
    "batch_norm with statistics": Function("batch_norm", with_statistics(True), ((5, 3), (3,), (3,))),
    "batch_norm of images": Function("batch_norm", with_statistics(True), ((2, 2, 1, 3), (2,), (2,))),
    "batch_norm without parameters": Function("batch_norm", with_statistics(True), ((5, 2),)),
    "batch_norm without bias": Function("batch_norm", with_statistics(True), ((5, 2), (2,))),
    "batch_norm in evaluation": Function("batch_norm", with_statistics(False), ((2, 2, 2), (2,), (2,))),
    "batch_norm in evaluation without parameters": Function("batch_norm", with_statistics(False), ((5, 2),)),
    "batch_norm_act": Function(
        "batch_norm_act", lambda f, x, *t: f(x, None, None, *t, training=True, act="relu"),
        ((4, 2), (2,), (2,))),
    "batch_norm and relu": Function("batch_norm_act", followed_by("relu"), ((4, 2), (2,), (2,))),
    "batch_norm, sum and leaky_relu": Function(
        "batch_norm_act", followed_by("leaky_relu", negative_slope=0.3), ((3, 2), (2,), (2,), (3, 2))),
    "batch_norm, sum and relu6 in evaluation": Function(
        "batch_norm_act", followed_by("relu6", training=False), ((3, 2), (2,), (2,), (3, 2))),
    "batch_norm and sum": Function("batch_norm_act", followed_by(None), ((3, 2), (2,), (2,), (3, 2))),
    "batch_norm and silu": Function("batch_norm_act", followed_by("silu"), ((4, 2), (2,), (2,))),
    "batch_norm, sum and gelu": Function(
        "batch_norm_act", followed_by("gelu"), ((4, 2), (2,), (2,), (4, 2))),
    "batch_norm and gelu_tanh in evaluation": Function(
        "batch_norm_act", followed_by("gelu_tanh", training=False), ((3, 2), (2,), (2,))),
    "batch_norm, sum and hardswish without parameters": Function(
        "batch_norm_act", lambda f, x, residual: followed_by("hardswish")(f, x, residual=residual),
        ((4, 2), (4, 2))),
    "group_norm": Function("group_norm", in_groups(2), ((3, 4), (4,), (4,))),
    "group_norm of images": Function("group_norm", in_groups(2), ((2, 4, 1, 3), (4,), (4,))),
    "group_norm without parameters": Function("group_norm", in_groups(1), ((3, 2, 2),)),
    "group_norm without bias": Function("group_norm", in_groups(3), ((2, 3, 3), (3,))),
    "instance_norm": Function(
        "instance_norm", lambda f, x, weight, bias: f(x, weight=weight, bias=bias), ((2, 2, 4), (2,), (2,))),
    "instance_norm with statistics": Function("instance_norm", instances(True), ((2, 2, 4), (2,), (2,))),
    "instance_norm without parameters": Function("instance_norm", as_they_are, ((2, 2, 3),)),
    "instance_norm in evaluation": Function("instance_norm", instances(False), ((2, 2, 2), (2,), (2,))),
    "dropout": Dropout("dropout", dropped, ((3, 5, 2, 2),)),
    "dropout1d": Dropout("dropout1d", dropped, ((5, 5, 2),), leading=2),
    "dropout1d of one sample": Dropout("dropout1d", dropped, ((17, 3),), leading=1),
    "dropout2d": Dropout("dropout2d", dropped, ((5, 3, 2, 2),), leading=2),
    "dropout2d of single positions": Dropout("dropout2d", dropped, ((5, 7, 1, 1),), leading=2),
    "dropout3d": Dropout("dropout3d", dropped, ((5, 3, 2, 2, 1),), leading=2),
    "dropout3d of one sample": Dropout("dropout3d", dropped, ((15, 1, 2, 2),), leading=1),
    "alpha_dropout": Dropout("alpha_dropout", dropped, ((3, 5, 2, 2),), alpha=True),
    "feature_alpha_dropout": Dropout("feature_alpha_dropout", dropped, ((5, 5, 2),), leading=2, alpha=True),
    "feature_alpha_dropout without positions": Dropout(
        "feature_alpha_dropout", dropped, ((5, 7),), leading=2, alpha=True),
    "drop_path": Dropout("drop_path", dropped, ((17, 3, 1),), leading=1),
    "drop_path without scale": Dropout(
        "drop_path", lambda f, x, p=0.25, **options: f(x, p, training=True, scale_by_keep=False, **options),
        ((17, 3, 1),), leading=1, scaled=False),
    "dropout of everything": Function("dropout", everything, ((4,),), draws=True),
    "alpha_dropout of everything": Function("alpha_dropout", everything, ((4,),), draws=True),
    "dropout_add": Function(
        "dropout_add", lambda f, x, residual, **o: f(x, residual, 0.4, **o), ((2, 3), (2, 3)), draws=True),
    "dropout_add with a layer scale": Function(
        "dropout_add", lambda f, x, residual, scale, **o: f(x, residual, 0.4, layer_scale=scale, **o),
        ((2, 3), (2, 3), (3,)), draws=True),
    "drop_path_add": Function(
        "drop_path_add", lambda f, x, residual, **o: f(x, residual, 0.4, True, **o), ((4, 2), (4, 2)),
        draws=True),
    "dropout_add_layer_norm": Function(
        "dropout_add_layer_norm", of_the_sum, ((2, 3), (2, 3), (3,), (3,)), draws=True),
    "dropout_add_layer_norm alone": Function(
        "dropout_add_layer_norm", of_the_sum, ((2, 3), (2, 3)), draws=True),
    "dropout_add_layer_norm and the sum": Function(
        "dropout_add_layer_norm", both(), ((2, 3), (2, 3), (3,), (3,), (3,)), draws=True),
    "dropout_add_rms_norm": Function(
        "dropout_add_rms_norm", of_the_sum, ((2, 3), (2, 3), (3,)), draws=True),
    "dropout_add_rms_norm and the sum, scaled by row": Function(
        "dropout_add_rms_norm", both((0.5, 2.0)), ((2, 1, 3), (2, 1, 3), (3,), (3,)), draws=True),
    "bias_act_dropout": Function(
        "bias_act_dropout", lambda f, x, bias, **o: f(x, bias, "gelu", 0.4, **o), ((2, 3), (3,)), draws=True),
    "bias_act_dropout without bias": Function(
        "bias_act_dropout", lambda f, x, **o: f(x, act="silu", p=0.4, **o), ((2, 3),), draws=True),
    "l2_penalty": Function("l2_penalty", lambda f, *t: f(t, 0.3), ((5,), (2, 3))),
}  # fmt: skip
OPERATIONS = {name: row for name, row in FUNCTIONS.items() if name == row.name}


class Residual(torch.nn.Module):
    """A residual branch, of which `replace` sees the layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        result = self.layer(x * 2, residual=x)
        return result if isinstance(result, torch.Tensor) else torch.cat(result)


def behind_linear(layer):
    return torch.nn.Sequential(torch.nn.Linear(6, 6), layer)


@dataclass(frozen=True)
class Layer:
    """A layer, by its class in torch.nn or normreg and the arguments of its constructor."""

    kind: str
    arguments: tuple
    sample: tuple  # shape of one
    kernels: str  # what their names start with, the forward's first
    options: dict = field(default_factory=dict)
    draws: bool = False
    module: Callable = lambda layer: layer  # which is called with x alone

    def make(self, library=normreg):
        return self.module(getattr(library, self.kind)(*self.arguments, **self.options))


ROWS, BATCH, GROUP, DROP = "layer_norm", "batch_norm", "group_norm", "dropout"
LAYERS = {
    "LayerNorm": Layer("LayerNorm", (6,), (6,), ROWS),
    "LayerNorm without parameters": Layer("LayerNorm", ((3, 4), 1e-5, False), (3, 4), ROWS),
    "RMSNorm": Layer("RMSNorm", (6,), (6,), ROWS),
    "RMSNorm of three dimensions": Layer("RMSNorm", (4,), (2, 3, 4), ROWS),
    "BatchNorm1d": Layer("BatchNorm1d", (6,), (6,), BATCH),
    "BatchNorm1d, split": Layer("BatchNorm1d", (6,), (6,), BATCH, dict(momentum=None)),
    "BatchNorm2d": Layer("BatchNorm2d", (3,), (3, 4, 4), BATCH),
    "BatchNorm2d, cumulative": Layer("BatchNorm2d", (4,), (4, 3, 3), BATCH, dict(momentum=None)),
    "BatchNorm3d": Layer("BatchNorm3d", (2,), (2, 3, 2, 2), BATCH),
    "BatchNorm3d without state": Layer(
        "BatchNorm3d", (4,), (4, 2, 1, 3), BATCH, dict(affine=False, track_running_stats=False)),
    "SyncBatchNorm": Layer("SyncBatchNorm", (6,), (6,), BATCH),  # which of one rank it is
    "BatchNormAct1d": Layer("BatchNormAct1d", (4,), (4, 3), BATCH, dict(act="silu")),
    "BatchNormAct2d": Layer("BatchNormAct2d", (6,), (6, 2, 2), BATCH, dict(act="silu")),
    "BatchNormAct2d with a residual": Layer("BatchNormAct2d", (4,), (4, 3, 5), BATCH, module=Residual),
    "BatchNormAct3d": Layer("BatchNormAct3d", (2,), (2, 3, 2, 2), BATCH),
    "SyncBatchNormAct": Layer("SyncBatchNormAct", (6,), (6,), BATCH, module=Residual),
    "GroupNorm": Layer("GroupNorm", (2, 6), (6, 3, 5), GROUP),
    "InstanceNorm1d": Layer("InstanceNorm1d", (6, 1e-5, 0.1, True, True), (6, 5), "group_norm instance_norm"),
    "InstanceNorm1d without parameters": Layer("InstanceNorm1d", (4,), (4, 3), GROUP),
    "InstanceNorm2d": Layer("InstanceNorm2d", (3, 1e-5, 0.1, True), (3, 4, 4), GROUP),
    "InstanceNorm2d with state": Layer(
        "InstanceNorm2d", (4, 1e-5, 0.1, True, True), (4, 3, 5), "group_norm instance_norm"),
    "InstanceNorm3d": Layer("InstanceNorm3d", (2,), (2, 3, 2, 2), GROUP),
    "InstanceNorm3d, cumulative": Layer(
        "InstanceNorm3d", (4, 1e-5, None, False, True), (4, 2, 1, 3), "group_norm instance_norm"),
    "LayerNorm1d": Layer("LayerNorm1d", (4,), (4, 3), ROWS),
    "LayerNorm2d": Layer("LayerNorm2d", (4,), (4, 3, 2), ROWS),
    "LayerNorm3d": Layer("LayerNorm3d", (4,), (4, 2, 1, 3), ROWS),
    "LayerNorm3d without parameters": Layer("LayerNorm3d", (4,), (4, 2, 1, 3), ROWS, dict(affine=False)),
    "Dropout": Layer("Dropout", (0.25,), (6,), DROP, draws=True),
    "Dropout in place": Layer("Dropout", (0.4, True), (6,), DROP, draws=True, module=behind_linear),
    "Dropout1d": Layer("Dropout1d", (0.25,), (6, 3), DROP, draws=True),
    "Dropout2d": Layer("Dropout2d", (0.25,), (6, 2, 3), DROP, draws=True),
    "Dropout3d": Layer("Dropout3d", (0.25,), (6, 2, 2, 1), DROP, draws=True),
    "AlphaDropout": Layer("AlphaDropout", (0.25,), (6,), DROP, draws=True),
    "FeatureAlphaDropout": Layer("FeatureAlphaDropout", (0.25,), (6, 2), DROP, draws=True),
    "DropPath": Layer("DropPath", (0.4,), (4, 3), DROP, draws=True),
    "DropPathAdd": Layer("DropPathAdd", (0.4,), (4, 3), DROP, draws=True, module=Residual),
    "DropoutAdd": Layer("DropoutAdd", (0.4,), (4, 3), DROP, draws=True, module=Residual),
    "BiasActDropout": Layer("BiasActDropout", (4,), (3, 4), "bias_act", dict(p=0.4), draws=True),
    "DropoutAddLayerNorm": Layer(
        "DropoutAddLayerNorm", (4,), (3, 4), DROP, dict(p=0.4, layer_scale=0.5), draws=True, module=Residual),
    "DropoutAddRMSNorm": Layer(
        "DropoutAddRMSNorm", (4,), (3, 4), DROP, dict(p=0.4), draws=True, module=Residual),
    "DropoutAddRMSNorm, prenorm": Layer(
        "DropoutAddRMSNorm", (4,), (4,), DROP, dict(p=0.4, prenorm=True), draws=True, module=Residual),
}  # fmt: skip
# those that `replace` makes of torch's
KINDS = {kind: row for kind, row in LAYERS.items() if getattr(torch.nn, kind, None) in COUNTERPARTS}

every_function = pytest.mark.parametrize("row", FUNCTIONS.values(), ids=FUNCTIONS)
every_layer = pytest.mark.parametrize("row", LAYERS.values(), ids=LAYERS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def torch_layer(kind, device, dtype=torch.float32):
    """A torch layer with nothing at its initial value, and an input for it."""
    module = KINDS[kind].make(torch.nn).to(device, dtype)
    leave_initial_values(module)
    return module, torch.randn(5, *KINDS[kind].sample, device=device, dtype=dtype)
