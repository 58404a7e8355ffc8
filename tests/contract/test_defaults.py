"""torch's default device and dtype decide where new tensors are made, and nothing of those that there are."""

import contextlib
import copy

import pytest
import torch
from operations import LIBRARIES, every_function, every_layer
from torch import nn

import normreg


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULTS = {
    "with device": lambda: torch.device("meta"),
    "default device": lambda: default_device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}
every_default = pytest.mark.parametrize("default", DEFAULTS.values(), ids=DEFAULTS)


def assert_same(default, run):
    """The same results, dtypes and devices, and the same random numbers, as without the default."""
    found = []
    for surroundings in (contextlib.nullcontext, default):
        torch.manual_seed(3)
        with surroundings():
            found.append(run())
    tensors = [[x for x in run if isinstance(x, torch.Tensor)] for run in found]
    torch.testing.assert_close(*tensors, rtol=0, atol=0)
    assert len({str([x for x in run if not isinstance(x, torch.Tensor)]) for run in found}) == 1, found


@every_default
@every_function
def test_functions_and_their_gradients(device, row, default):
    inputs = row.inputs(device)
    wanted = [x for x in inputs if x is not None]

    def run():
        y = row(LIBRARIES["normreg"], *inputs)
        return [y, *torch.autograd.grad(y.sum(), wanted, allow_unused=True)]

    assert_same(default, run)


@every_default
@every_layer
def test_new_layers_are_made_as_torchs(row, default):
    """Parameters and buffers have the default device and dtype, those of torch's layer where there is one."""
    with default():
        ours, like = row.make(), nn.BatchNorm1d(2)
        theirs = row.make(nn) if hasattr(nn, row.kind) else None
    tensors = [*ours.parameters(), *ours.buffers()]
    assert {x.device for x in tensors} <= {like.weight.device}
    assert {x.dtype for x in tensors if x.is_floating_point()} <= {like.weight.dtype}
    if theirs is not None:
        kinds = [{name: (x.device, x.dtype) for name, x in m.state_dict().items()} for m in (ours, theirs)]
        assert kinds[0] == kinds[1]


def model():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.Flatten(),
        nn.LayerNorm(64),
        nn.Linear(64, 3),
    )


def replaced(m, x):
    torch._dynamo.reset()
    return [normreg.replace(m, fuse=True, example_inputs=x), *m.state_dict().values()]


TOOLS = {
    "explain": lambda m, x: [normreg.explain(m, x)],
    "diagnose": lambda m, x: [normreg.diagnose(m, x)],
    "replace": replaced,
    "restore": lambda m, x: [normreg.restore(m), m(x)],
    "convert_sync_batchnorm": lambda m, x: [*normreg.convert_sync_batchnorm(m).state_dict().values()],
    "kaiming_": lambda m, x: [normreg.init.kaiming_(m), *m.parameters()],
    "xavier_": lambda m, x: [normreg.init.xavier_(m), *m.parameters()],
    "truncated_normal_": lambda m, x: [normreg.init.truncated_normal_(m), *m.parameters()],
    "recalibrate_batch_norm": lambda m, x: [normreg.recalibrate_batch_norm(m, [x, 2 * x]), *m.buffers()],
    "freeze_batch_norm": lambda m, x: [normreg.freeze_batch_norm(m), m(x), *m.buffers()],
    "l2_penalty": lambda m, x: [normreg.l2_penalty(m.parameters(), 0.1)],
    "parameter_groups": lambda m, x: [len(g["params"]) for g in normreg.parameter_groups(m, 0.1)],
    "dropout_mask": lambda m, x: [normreg.dropout_mask(normreg.functional.dropout, x)],
}


@every_default
@pytest.mark.parametrize("tool", TOOLS)
def test_tools(device, tool, default):
    layers, x = model().to(device), torch.randn(3, 2, 6, 6, device=device)
    if tool != "replace":
        normreg.replace(layers)
    assert_same(default, lambda: TOOLS[tool](copy.deepcopy(layers), x))
