"""What users call wrongly, and that every error says what was expected, what came, and what to do."""

import re

import pytest
import torch
from torch import nn

import normreg
from normreg import functional


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x):
        return x + self.bn(x)


class TunedBatchNorm(nn.BatchNorm2d):
    def forward(self, input):
        return input


def model():
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Dropout(0.1))


def names():
    x, img = torch.randn(4, 8), torch.randn(2, 8, 4, 4)
    own = dict(Block=Block, TunedBatchNorm=TunedBatchNorm, model=model, x=x, img=img, nan=float("nan"))
    return dict(own, normreg=normreg, functional=functional, torch=torch, nn=nn)


CALLS = """
normreg.replace([model()])
normreg.replace(model().state_dict())
normreg.replace(model(), include="LayerNorm")
normreg.replace(model(), include=nn.Conv2d)
normreg.replace(model(), include="encoder.*")
normreg.replace(model(), exclude=3)
normreg.replace(model(), fuse=["bn_relu"])
normreg.replace(model(), fuse="all")
normreg.replace(model(), fuse=True, example_inputs=(x, x))
normreg.restore(model(), include="0")
normreg.register_with("onnx")
normreg.register_layer()
normreg.register_layer("Norm")
normreg.register_layer(nn.LayerNorm)(None)
normreg.explain(model())
normreg.explain(model().forward, x)
normreg.explain(nn.LazyLinear(3), x)
normreg.diagnose(model(), x, loss=3)
normreg.diagnose(model(), x, loss=lambda y: y)
normreg.diagnose(model(), x, dead=2)
normreg.diagnose(model().requires_grad_(False), x)
normreg.parameter_groups(model().parameters(), 0.01)
normreg.parameter_groups(model(), -1)
normreg.parameter_groups(model(), "0.01")
normreg.parameter_groups(model(), 0.01, no_decay="embed")
normreg.parameter_groups(model(), 0.01, no_decay=[3])
normreg.parameter_groups(nn.ReLU(), 0.01)
normreg.register_no_decay(nn.LayerNorm(3))
normreg.l2_penalty(model(), 1e-4)
normreg.l2_penalty([], 1e-4)
normreg.l2_penalty([torch.ones(3, dtype=torch.int64)], 1e-4)
normreg.init.zero_residual_(model(), "Block")
normreg.init.zero_residual_(model(), Block)
normreg.init.xavier_(model()[0].weight)
normreg.freeze_batch_norm(nn.BatchNorm2d(3, track_running_stats=False))
normreg.freeze_batch_norm(None)
normreg.recalibrate_batch_norm(Block(), [])
normreg.recalibrate_batch_norm(Block(), [img * nan])
normreg.recalibrate_batch_norm(Block(), [{"pixels": img}])
normreg.recalibrate_batch_norm(Block(), [img], forward=3)
normreg.recalibrate_batch_norm(Block(), ["text"])
normreg.convert_sync_batchnorm(TunedBatchNorm(3))
normreg.BatchNormAct2d(8, "relu")
normreg.BatchNormAct2d(8, act="tanh")
normreg.BatchNormAct2d(8)(img, residual=3.0)
normreg.BatchNormAct2d(8, inplace=True)
normreg.GroupNormAct(8, 2)
normreg.GroupNormAct(3, 8)
normreg.GroupNormAct(2, 8, "relu")
normreg.GroupNormAct(2, 8, act="tanh")
normreg.GroupNormAct(2, 8, act_layer=nn.ReLU)
normreg.GroupNormAct(2, 8, group_size=4)
normreg.DropoutAddLayerNorm(8, 0.1)
normreg.DropoutAddLayerNorm(8, dropout=0.1)
normreg.DropoutAddLayerNorm(8)(x, x[:2])
normreg.DropoutAdd(1.5)
normreg.DropoutAdd(0.1)(x, 3)
normreg.DropPath(2.0)
normreg.DropPath("0.1")
normreg.DropPath(p=0.1)
normreg.LayerNorm2d(7, elementwise_affine=False)
normreg.LayerNorm2d(8)(x)
normreg.RMSNorm2d(8, bias=False)
normreg.BiasActDropout(8, 0.1)
functional.dropout_add(x, x[:1])
functional.dropout_add(x, x, row_scale=torch.ones(3))
functional.dropout_add(x, x, layer_scale=torch.ones(3))
functional.ada_layer_norm(x, None)
functional.ada_layer_norm(x, 0.5)
functional.ada_layer_norm(x, torch.ones(4, 7))
functional.ada_layer_norm(x, torch.ones(3, 8), torch.ones(8))
functional.ada_layer_norm(img, torch.ones(4, 4))
functional.ada_layer_norm(torch.ones(2, 3, 5, 8), torch.ones(2, 5, 1, 8))
functional.ada_layer_norm(x, torch.ones(8), out_dtype=torch.int8)
functional.ada_layer_norm(x, torch.ones(8), torch.ones(8, dtype=torch.float64))
functional.ada_rms_norm(x, torch.ones(8, dtype=torch.int64))
functional.ada_rms_norm(x, torch.ones(8), gate=torch.ones(8))
functional.ada_rms_norm(x, torch.ones(8), residual=x[:2])
functional.ada_rms_norm(x, torch.ones(8), residual=x, gate=torch.ones(2, 4, 8))
functional.ada_rms_norm(x, torch.ones(8), residual=x > 0)
normreg.AdaLayerNorm(8, affine=True)
normreg.AdaRMSNorm(8, bias=False)
normreg.AdaRMSNorm(8)(x, x[:2])
functional.dropout(x, generator=3)
functional.dropout([1., 2.], generator=torch.Generator())
functional.bias_act_dropout(x, torch.ones(3))
functional.layer_norm_channels(x[0], None, None)
normreg.dropout_mask("dropout", x)
normreg.dropout_mask(functional.layer_norm, x)
normreg.LayerNorm2d(8)(torch.randn(2, 3, 4, 4))
normreg.DropPathAdd(2.0)
normreg.DropoutAdd(drop_prob=0.1)
normreg.BiasActDropout(8, bias=False)
normreg.BatchNormAct2d(8, act="leaky_relu", negative_slope="a")(img)
normreg.BatchNormAct2d(8)(img, residual=torch.ones(2, 8, 4, 4, dtype=torch.int64))
normreg.BatchNormAct2d(8)(img, residual=torch.ones(2, 8, 4, 3))
normreg.SyncBatchNorm(8, process_group=3)(img)
functional.layer_norm(x, (8,), residual=3)
functional.batch_norm_act(img, None, None, training=True, act="swish")
functional.group_norm_act(img, 2, act="swish")
functional.group_norm_act(img, 2, act="leaky_relu", negative_slope="a")
functional.drop_path(x, 1.5, True)
normreg.restore([model()])
normreg.replace(model(), include=lambda module: True)
normreg.restored(3).__enter__()
normreg.diagnose(model().to("meta"), x.to("meta"))
normreg.running_statistics_held(3).__enter__()
normreg.unfreeze_batch_norm("model")
normreg.freeze_batch_norm(nn.LazyBatchNorm2d())
normreg.as_before(nn.LayerNorm(3), x)
normreg.QKNorm(8, dim=8)
normreg.QKNorm(8, norm="batch_norm")
normreg.QKNorm(8, bias=True)
normreg.QKNorm(4)(x, x)
functional.qk_norm(x, x[:, :4])
functional.qk_norm(x, x.double())
functional.qk_norm(x, 3)
functional.qk_norm(x, x, None, torch.ones(4))
functional.qk_norm(x, x, k_bias=torch.ones(8))
functional.qk_norm(x, x, norm="l2")
functional.qk_norm(x, x, [1.0] * 8)
functional.qk_norm(x, x, rotary=x)
functional.qk_norm(x, x, rotary=(x + 0j, x + 0j))
functional.qk_norm(x, x, rotary=(x, x[0]))
functional.qk_norm(x, x, rotary=(x[:3], x[:3]))
functional.qk_norm(x[:, :7], x[:, :7], rotary=(x, x))
functional.rms_norm_gated(x, x[:2])
functional.rms_norm_gated(x, 3.0)
functional.rms_norm_gated(x, x, torch.ones(4), group_size=4)
functional.rms_norm_gated(x, x, group_size=3)
functional.rms_norm_gated(x, x, act="swish")
functional.rms_norm_gated(x, x, act=torch.nn.functional.silu)
functional.rms_norm_gated(x[0, 0], x[0, 0])
normreg.RMSNormGated(8, group_size=3)
normreg.RMSNormGated(8, act="gelu")
normreg.RMSNormGated(8, True)
normreg.RMSNormGated(8, 1e-5, True, 4)
normreg.RMSNormGated(8, activation="swish")
normreg.RMSNormGated(8)(x, x[:, :4])
normreg.fused("indctor")
normreg.fused(patterns=["x"])
functional.layer_norm(x, (8,), out_dtype=torch.int8)
functional.rms_norm(x, (8,), residual=x, out_dtype=torch.int8)
functional.layer_norm(x, (8,), out_dtype=torch.float8_e4m3fn, scale=0.5)
functional.rms_norm([1.0], (8,), out_dtype=torch.float8_e4m3fn)
normreg.GroupNorm(2, 8, out_dtype="bfloat16")
normreg.autocast_output("bfloat16")
""".strip().splitlines()
SAYS_ALL = re.compile(
    r"(expected .+(, got | and .+).*|has no argument .+, got .+): .+",  # the remedy behind a colon
    re.DOTALL,
)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("call", CALLS)
def test_an_error_says_what_to_do(call):
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        eval(call, names())
    told = str(caught.value)
    assert SAYS_ALL.search(told), told
    assert type(caught.value).__module__ == "builtins"


def test_what_says_nothing_is_seen():
    for told in ("'dict' object has no attribute 'dim'", "expected a list, got int", "got 3: pass a list"):
        assert not SAYS_ALL.search(told)
