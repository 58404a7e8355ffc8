"""Tools that look at exact classes find replaced layers in `restored`, or by `register_with`."""

import copy
import sys
import types

import pytest
import torch
from torch import nn
from torch.ao.quantization import fuse_modules, fuse_modules_qat, fuser_method_mappings
from torch.fx.experimental import optimization

import normreg
from normreg.models import registry, tools

# torch.ao is deprecated, not gone
pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:`torch.jit.")


def convolutional():
    """A convolution, BatchNorm and ReLU with statistics of their own, replaced."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    model(torch.randn(8, 3, 6, 6))
    normreg.replace(model)
    return model


def folded(model):
    """Whether the convolution has taken its BatchNorm in."""
    return not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def by_fx(model):
    return optimization.fuse(model)


def by_name(model):
    return fuse_modules(model, [["0", "1", "2"]])


@pytest.mark.parametrize("fold", [by_fx, by_name], ids=["fx", "fuse_modules"])
def test_folding_finds_a_restored_model(fold):
    model, x = convolutional().eval(), torch.randn(2, 3, 6, 6)
    expected = model(x)
    with normreg.restored(model):
        fused = fold(model)
    assert folded(fused)
    torch.testing.assert_close(fused(x), expected)
    assert type(model[1]) is normreg.BatchNorm2d


def test_what_torch_jit_scripts():
    model, x = convolutional().eval(), torch.randn(2, 3, 6, 6)
    with normreg.restored(model):
        scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(x), model(x))


@pytest.fixture
def folding(monkeypatch):
    """torch.ao's own rules, which are put back."""
    rules = dict(fuser_method_mappings._DEFAULT_OP_LIST_TO_FUSER_METHOD)
    monkeypatch.setattr(fuser_method_mappings, "_DEFAULT_OP_LIST_TO_FUSER_METHOD", rules)
    return rules


def test_fuse_modules_knows_layers_that_are_registered(folding):
    model, x = convolutional().eval(), torch.randn(2, 3, 6, 6)
    with pytest.raises((AssertionError, NotImplementedError), match="fuse"):
        by_name(model)
    before = len(folding)
    assert normreg.register_with("torch.ao") == len(folding) - before >= 9
    assert normreg.register_with("torch.ao") == 0
    fused = by_name(model)
    assert folded(fused)
    torch.testing.assert_close(fused(x), model(x))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_rule_of_fuse_modules(folding, dims):
    """Each kind of layer in front of BatchNorm, and in training what quantisation then trains."""
    normreg.register_with("torch.ao")
    conv, norm = (getattr(nn, f"{kind}{dims}d") for kind in ("Conv", "BatchNorm"))
    transposed = getattr(nn, f"ConvTranspose{dims}d")
    x = torch.randn(4, 3, *[5] * dims)
    for layers in (
        [conv(3, 4, 2), norm(4)],
        [conv(3, 4, 2), norm(4), nn.ReLU()],
        [transposed(3, 4, 2), norm(4)],
    ):
        model = nn.Sequential(*layers)
        model(x)
        normreg.replace(model)
        names = [str(place) for place in range(len(layers))]
        if layers[0].__class__ is conv:
            trained = fuse_modules_qat(copy.deepcopy(model), [names])
            assert isinstance(trained[0], nn.Sequential)
        model.eval()
        fused = fuse_modules(model, [names])
        assert folded(fused)
        torch.testing.assert_close(fused(x), model(x))


Validator, Sampler = types.SimpleNamespace(), types.SimpleNamespace()


@pytest.fixture
def opacus(monkeypatch):
    """A stand-in for opacus: the tables by class that its public decorators fill."""
    refused = dict.fromkeys([nn.BatchNorm2d, nn.SyncBatchNorm], "no privacy")
    Validator.VALIDATORS = {**refused, nn.InstanceNorm2d: "no statistics"}
    Validator.FIXERS = {nn.BatchNorm2d: "to GroupNorm"}
    Sampler.GRAD_SAMPLERS = {nn.LayerNorm: "of LayerNorm", nn.GroupNorm: "of GroupNorm"}
    validators, samplers = dict(ModuleValidator=Validator), dict(GradSampleModule=Sampler)
    for name, contents in {"": {}, ".validators": validators, ".grad_sample": samplers}.items():
        module = types.ModuleType(f"opacus{name}")
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_opacus_refuses_every_batch_norm(opacus):
    """Those with an activation, too, which no fixer may exchange: it would forget the activation."""
    assert normreg.register_with("opacus") == 8
    assert normreg.register_with("opacus") == 0
    added = {cls: rule for cls, rule in Validator.VALIDATORS.items() if cls in registry.OURS}
    assert added == {
        normreg.BatchNorm2d: "no privacy",
        normreg.BatchNormAct2d: "no privacy",
        normreg.SyncBatchNorm: "no privacy",
        normreg.SyncBatchNormAct: "no privacy",
        normreg.InstanceNorm2d: "no statistics",
    }
    assert Validator.FIXERS[normreg.BatchNorm2d] == "to GroupNorm"
    assert set(Validator.FIXERS) == {nn.BatchNorm2d, normreg.BatchNorm2d}
    assert set(Sampler.GRAD_SAMPLERS) == {nn.LayerNorm, nn.GroupNorm, normreg.LayerNorm, normreg.GroupNorm}


def test_a_rule_of_the_users_own_stays(opacus):
    Validator.VALIDATORS[normreg.BatchNorm2d] = "mine"
    normreg.register_with("opacus")
    assert Validator.VALIDATORS[normreg.BatchNorm2d] == "mine"


def test_tools_that_cannot_be_told(opacus, monkeypatch):
    with pytest.raises(
        ValueError, match=r"'opacus' or 'torch.ao', got 'onnx': call any other tool in `with norm"
    ):
        normreg.register_with("onnx")
    monkeypatch.delattr(Validator, "FIXERS")
    with pytest.raises(RuntimeError, match=r"has no attribute 'FIXERS'\): call it in `with normreg.restored"):
        normreg.register_with("opacus")
    monkeypatch.setitem(sys.modules, "opacus.validators", None)
    with pytest.raises(ModuleNotFoundError, match="expected opacus to be installed"):
        normreg.register_with("opacus")


def test_the_real_opacus():
    """What users see: a replaced model is refused, fixed, and trained with gradients of each sample."""
    pytest.importorskip("opacus")
    from opacus.grad_sample import GradSampleModule
    from opacus.validators import ModuleValidator

    model = convolutional()
    with normreg.restored(model):
        assert len(ModuleValidator.validate(model)) == 1
    normreg.register_with("opacus")
    assert len(ModuleValidator.validate(model)) == 1
    fixed = ModuleValidator.fix(model)
    assert ModuleValidator.validate(fixed) == []
    normreg.replace(fixed)
    sampled = GradSampleModule(fixed)
    sampled(torch.randn(5, 3, 6, 6, requires_grad=True)).sum().backward()
    assert all(p.grad_sample.shape == (5, *p.shape) for p in sampled.parameters())


def test_each_tool_is_documented():
    assert all(f'"{tool}"' in normreg.register_with.__doc__ for tool in tools.TOOLS)
