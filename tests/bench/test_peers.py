"""The benchmark's gate of accuracy, and its adapters of peers. Nothing is timed here."""

import contextlib
import copy
import sys
import types
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from stand_in_gpu import SMALL

from bench.operations import OPERATIONS, Case
from bench.operations.case import DTYPES
from bench.perf import contest, peers
from bench.perf.peers import PEERS, Peer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def contestant_of(case, peer):
    subject = contest.Subject(case, DEVICE)
    layer = copy.deepcopy(subject.layer)
    return subject, contest.Contestant(peer.adapt(case.operation, layer), layer, subject.inputs)


def error_of(subject, contestant, forward_only=False):
    return subject.error(contestant, *contestant.first_call(forward_only))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("peer", PEERS[:2], ids=lambda peer: peer.name)
def test_normreg_and_torch_agree_with_float64(name, dtype, peer):
    case = replace(SMALL[name], dtype=DTYPES[dtype])
    subject, contestant = contestant_of(case, peer)
    error = error_of(subject, contestant)
    assert error <= OPERATIONS[name].tolerance(case)


def too_large(layer):
    return lambda x: 1.01 * layer(x)


WRONG = {  # in place of too_large
    "layer_norm": lambda layer: lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:], layer.weight),
    "layer_norm_channels": lambda layer: lambda x: layer(x.flip(1)),
    "batch_norm": lambda layer: lambda x: layer(x).detach() + 0 * layer(x),  # no gradient, two updates
    "batch_norm_act": lambda layer: lambda x: torch.nn.functional.silu(layer.norm(x) + layer.residual),
    "group_norm": lambda layer: lambda x: torch.nn.functional.group_norm(x, 16, layer.weight, layer.bias),
    "dropout": lambda layer: lambda x: torch.nn.functional.dropout(x, 0.2),
    "dropout_add": lambda layer: lambda x: layer.residual + 1.01 * (layer(x) - layer.residual),
    "dropout_add_norm": lambda layer: lambda x: layer.norm(layer(x)),
    "bias_act_dropout": lambda layer: lambda x: layer.function(x, layer.bias, "silu", 0.1, layer.training),
}


@pytest.mark.parametrize("peer", PEERS[:2], ids=lambda peer: peer.name)
def test_dropout_of_channels_agrees(peer):
    case = Case("dropout", (9, 200, 5, 3), torch.float32, layer="Dropout2d")
    subject, contestant = contestant_of(case, peer)
    error = error_of(subject, contestant)
    assert error <= OPERATIONS["dropout"].tolerance(case)


@pytest.mark.parametrize("name", SMALL)
def test_a_wrong_result_is_refused(name):
    wrong = Peer("wrong", lambda operation, layer: WRONG.get(operation, too_large)(layer))
    subject, contestant = contestant_of(SMALL[name], wrong)
    if name == "layer_norm":  # without its bias
        contestant.layer.register_parameter("bias", None)
    error = error_of(subject, contestant)
    assert not error <= OPERATIONS[name].tolerance(SMALL[name])


@pytest.mark.parametrize("name", ["layer_norm", "dropout"])
def test_a_gradient_that_is_nan_is_refused(name):
    class Nan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dx):
            return dx / 0 - dx / 0

    broken = Peer("nan", lambda operation, layer: lambda x: layer(Nan.apply(x)))
    subject, contestant = contestant_of(SMALL[name], broken)
    assert not error_of(subject, contestant) <= OPERATIONS[name].tolerance(SMALL[name])


def test_dropout_with_another_mask_in_backward_is_refused():
    class TwoMasks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.nn.functional.dropout(x, 0.1)

        @staticmethod
        def backward(ctx, dy):
            return torch.nn.functional.dropout(dy, 0.1)

    subject, contestant = contestant_of(SMALL["dropout"], Peer("two", lambda *_: TwoMasks.apply))
    assert error_of(subject, contestant) > 0.1


def fake_library(name, **functions):
    """A module that computes with torch what the library of that name computes with its kernels."""
    module = types.ModuleType(name)
    module.__dict__.update(functions)
    return module


def norm(x, weight, bias, eps):
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps)


def root_mean_square(x, weight, eps):
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)


def dropped_sum(norm):
    def fused(x, weight, bias, residual=None, eps=1e-6, dropout_p=0.0, prenorm=False):
        z = torch.nn.functional.dropout(x, dropout_p)
        z = z if residual is None else residual + z
        y = norm(z, weight, bias, eps)
        return (y, z) if prenorm else y

    return fused


class LayerNorm(torch.nn.LayerNorm):
    def __init__(self, normalized_shape, eps, dtype=None):
        super().__init__(normalized_shape, eps, dtype=dtype)


class RMSNorm(torch.nn.RMSNorm):
    def __init__(self, normalized_shape, eps, dtype=None):
        super().__init__(normalized_shape, eps, dtype=dtype)


LIBRARIES = {
    "liger-kernel": {
        "liger_kernel": {},
        "liger_kernel.ops": {},
        "liger_kernel.ops.layer_norm": {"LigerLayerNormFunction": SimpleNamespace(apply=norm)},
        "liger_kernel.ops.rms_norm": {
            "LigerRMSNormFunction": SimpleNamespace(
                apply=lambda x, weight, eps, offset, mode, in_place: root_mean_square(x, weight, eps)
            )
        },
        "liger_kernel.ops.group_norm": {
            "LigerGroupNormFunction": SimpleNamespace(
                apply=lambda x, weight, bias, channels, groups, eps: torch.nn.functional.group_norm(
                    x, groups, weight, bias, eps
                )
            )
        },
    },
    "cuDNN frontend": {
        "cudnn": {},
        "cudnn.experimental": {},
        "cudnn.experimental.ops": {
            "layer_norm": torch.nn.functional.layer_norm,
            # (input, weight, bias, eps), and the shape is the weight's
            "rms_norm": lambda x, weight, bias=None, eps=1e-5: root_mean_square(x, weight, eps),
        },
    },
    "quack": {"quack": {}, "quack.rmsnorm": {"layernorm_fwd": norm, "rmsnorm": root_mean_square}},
    "flash-attn": {
        "flash_attn": {},
        "flash_attn.ops": {},
        "flash_attn.ops.triton": {},
        "flash_attn.ops.triton.layer_norm": {
            "layer_norm_fn": dropped_sum(norm),
            "rms_norm_fn": dropped_sum(lambda x, weight, bias, eps: root_mean_square(x, weight, eps)),
        },
    },
    "FlagGems": {"flag_gems": {"use_gems": lambda include: contextlib.nullcontext()}},
    "apex": {
        "apex": {},
        "apex.normalization": {
            "fused_layer_norm": SimpleNamespace(
                fused_layer_norm_affine=lambda x, weight, bias, shape, eps: norm(x, weight, bias, eps),
                fused_rms_norm_affine=lambda x, weight, shape, eps: root_mean_square(x, weight, eps),
            )
        },
    },
    "TransformerEngine": {
        "transformer_engine": {},
        "transformer_engine.pytorch": {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm},
    },
    "attorch": {
        "attorch": {
            "LayerNorm": LayerNorm,
            "RMSNorm": RMSNorm,
            "BatchNorm2d": torch.nn.BatchNorm2d,
            "Dropout": torch.nn.Dropout,
        }
    },
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("peer", PEERS[3:], ids=lambda peer: peer.name)
def test_adapters_compute_with_the_layers_own_parameters(monkeypatch, peer, name):
    """The adapters call stand-ins with the signatures of libraries that need a GPU."""
    for module, functions in LIBRARIES[peer.name].items():
        monkeypatch.setitem(sys.modules, module, fake_library(module, **functions))
    with peer.around(name):
        subject, contestant = contestant_of(SMALL[name], peer)
        if contestant.call is None:
            assert name not in ("layer_norm", "rms_norm")
            return
        error = error_of(subject, contestant, name in peer.forward_only)
    assert error <= OPERATIONS[name].tolerance(SMALL[name])


def test_peers_that_are_not_installed_are_known_not_to_be():
    assert PEERS[0].name == peers.OURS
    assert all(peer.installed() for peer in PEERS[:3])
    missing = Peer("missing", lambda *_: None, "no_such_package", "no-such-package")
    assert not missing.installed()
    assert missing.version() is None
