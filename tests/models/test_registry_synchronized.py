"""timm's BatchNormAct2d, by its stand-in, made a synchronised layer, before and after `replace`."""

import copy

import pytest
import torch
from foreign_layers import TimmBatchNormAct2d
from torch import nn

import normreg


class Tripled(nn.SiLU):
    def forward(self, x):
        return 3 * super().forward(x)


ACTS = {
    "known": nn.ReLU,
    "unknown": Tripled,
    "with a parameter": nn.PReLU,
    "none": nn.Identity,
}


def made(act, drop, replaced, device):
    torch.manual_seed(2)
    layer = TimmBatchNormAct2d(8)
    layer.act, layer.drop = act(), drop()
    model = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), layer).to(device).double()
    for tensor in (*layer.parameters(), layer.running_mean, layer.running_var):
        nn.init.uniform_(tensor, 0.5, 2.0)
    if replaced:
        normreg.replace(model)
    return model


def step(model, x):
    torch.manual_seed(3)
    y = model(x)
    return [
        y,
        *torch.autograd.grad(y.square().sum(), [*model.parameters()]),
        *(b.clone() for b in model.buffers()),
    ]


@pytest.mark.parametrize("replaced", [False, True], ids=["timm's", "replaced"])
@pytest.mark.parametrize("drop", [nn.Identity, nn.Dropout2d], ids=["nothing dropped", "dropped"])
@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_results_are_those_of_the_layer_before(device, act, drop, replaced):
    model = made(act, drop, replaced, device)
    before, children = copy.deepcopy(model), (model[1].drop, model[1].act)
    tensors = model.state_dict(keep_vars=True)
    normreg.convert_sync_batchnorm(model)
    assert type(model[1]) is normreg.SyncBatchNormAct
    after = model.state_dict(keep_vars=True)
    assert [*after] == [*tensors]
    assert all(after[name] is tensor for name, tensor in tensors.items())
    assert (model[1].drop, model[1].act) == children
    x = torch.randn(4, 8, 5, 5, device=device, dtype=torch.float64)
    for training in (True, False):
        results = step(model.train(training), x), step(before.train(training), x)
        torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)
    assert normreg.replace(model).skipped == normreg.restore(model).skipped == ()
    assert type(model[1]) in (normreg.SyncBatchNormAct, nn.SyncBatchNorm)


def test_it_is_synchronised():
    """In training among ranks, which one process has none of: it asks for the process group."""
    model = made(nn.ReLU, nn.Identity, False, "cpu")
    normreg.convert_sync_batchnorm(model, process_group=object())
    with pytest.raises(RuntimeError, match="init_process_group on every rank"):
        model(torch.randn(4, 8, 5, 5).double())


class Derived(TimmBatchNormAct2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_others_are_refused_by_name():
    model = nn.Sequential(TimmBatchNormAct2d(8), Derived(8))
    with pytest.raises(TypeError, match=r"got Derived at '1': put a normreg.SyncBatchNorm in its place"):
        normreg.convert_sync_batchnorm(model)
    assert type(model[0]) is TimmBatchNormAct2d
