"""Bad calls of LayerNorm, RMSNorm and GroupNorm end as torch's do, and change nothing."""

import pytest
import torch
import torch.nn.functional as F
from outcomes import assert_same_outcome, assert_unchanged, before_call, known, outcome

import normreg


def layer_norm_call(device):
    weight, bias = torch.randn(2, 4, device=device)
    return dict(
        input=torch.randn(3, 4, device=device), normalized_shape=(4,), weight=weight, bias=bias, eps=1e-5
    )


BAD_LAYER_NORM = {
    "rank 0": (RuntimeError, lambda good: dict(input=good["input"][0, 0])),
    "other normalized_shape": (RuntimeError, lambda good: dict(normalized_shape=(5,))),
    "longer normalized_shape": (RuntimeError, lambda good: dict(normalized_shape=(2, 3, 4))),
    "negative normalized_shape": (RuntimeError, lambda good: dict(normalized_shape=(-1,))),
    "empty normalized_shape": (RuntimeError, lambda good: dict(normalized_shape=())),
    "rank 0, empty normalized_shape": (
        RuntimeError,
        lambda good: dict(input=good["input"][0, 0], normalized_shape=(), weight=None, bias=None),
    ),
    "int normalized_shape": (TypeError, lambda good: dict(normalized_shape=4)),
    "float normalized_shape": (TypeError, lambda good: dict(normalized_shape=(4.0,))),
    "weight shape": (RuntimeError, lambda good: dict(weight=good["weight"][:3])),
    "weight rank": (RuntimeError, lambda good: dict(weight=good["weight"][None])),
    "bias shape": (RuntimeError, lambda good: dict(bias=good["bias"][:3])),
    "no affine, other shape": (
        RuntimeError,
        lambda good: dict(weight=None, bias=None, normalized_shape=(3,)),
    ),
    "input on meta": (None, lambda good: dict(input=good["input"].to("meta"))),
    "weight on meta": (None, lambda good: dict(weight=good["weight"].to("meta"))),
    "bias on meta": (None, lambda good: dict(bias=good["bias"].to("meta"))),
    "float64 weight": (RuntimeError, lambda good: dict(weight=good["weight"].double())),
    "float64 parameters": (
        RuntimeError,
        lambda good: dict(weight=good["weight"].double(), bias=good["bias"].double()),
    ),
    "float16 bias": (RuntimeError, lambda good: dict(bias=good["bias"].half())),
    "float64 input": (RuntimeError, lambda good: dict(input=good["input"].double())),
    "int64 input": (RuntimeError, lambda good: dict(input=good["input"].long())),
    "bool input": (RuntimeError, lambda good: dict(input=good["input"] > 0)),
    "complex input": (RuntimeError, lambda good: dict(input=good["input"].to(torch.complex64))),
    "sparse input": (RuntimeError, lambda good: dict(input=good["input"].to_sparse())),
    "list input": (TypeError, lambda good: dict(input=[1.0, 2.0])),
    "list weight": (TypeError, lambda good: dict(weight=[1.0] * 4)),
    "no input": (TypeError, lambda good: dict(input=None)),
    "str eps": (TypeError, lambda good: dict(eps="1e-5")),
}


@pytest.mark.parametrize(("expected", "change"), BAD_LAYER_NORM.values(), ids=BAD_LAYER_NORM)
def test_bad_layer_norm_calls(device, expected, change):
    expected = known(expected, device)
    arguments = layer_norm_call(device)
    arguments |= change(arguments)
    before = before_call(arguments)
    theirs = outcome(F.layer_norm, **arguments)
    ours = outcome(normreg.functional.layer_norm, **arguments)
    assert expected is None or isinstance(theirs, expected)
    assert_same_outcome(ours, theirs)
    assert_unchanged(arguments, before)


# torch's rms_norm takes complex input and any dtype of weight
RMS_NORM_RAISES = {
    "rank 0": ValueError,
    "float64 weight": None,
    "float64 input": None,
    "complex input": None,
}
BAD_RMS_NORM = {
    name: (RMS_NORM_RAISES.get(name, expected), change)
    for name, (expected, change) in BAD_LAYER_NORM.items()
    if "bias" not in name and "parameters" not in name
} | {"float16 weight": (None, lambda good: dict(weight=good["weight"].half()))}


# which it warns of, once in a process
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and:UserWarning")
@pytest.mark.parametrize(("expected", "change"), BAD_RMS_NORM.values(), ids=BAD_RMS_NORM)
def test_bad_rms_norm_calls(device, expected, change):
    expected = known(expected, device)
    arguments = layer_norm_call(device)
    arguments |= change(arguments)
    del arguments["bias"]
    before = before_call(arguments)
    theirs = outcome(F.rms_norm, **arguments)
    ours = outcome(normreg.functional.rms_norm, **arguments)
    assert expected is None or isinstance(theirs, expected)
    assert_same_outcome(ours, theirs)
    assert_unchanged(arguments, before)


def group_norm_call(device):
    weight, bias = torch.randn(2, 6, device=device)
    return dict(input=torch.randn(3, 6, 4, device=device), num_groups=2, weight=weight, bias=bias, eps=1e-5)


BAD_GROUP_NORM = {
    "rank 0": (RuntimeError, lambda good: dict(input=good["input"][0, 0, 0])),
    "rank 1": (RuntimeError, lambda good: dict(input=good["input"][0, 0])),
    "channel count": (RuntimeError, lambda good: dict(input=good["input"][:, 2:])),
    "one value": (ValueError, lambda good: dict(input=good["input"][:1, :, 0], num_groups=6)),
    "one value, three dimensions": (
        ValueError,
        lambda good: dict(input=good["input"][:1, :, :1], num_groups=6),
    ),
    "groups do not divide": (RuntimeError, lambda good: dict(num_groups=4)),
    "more groups than channels": (None, lambda good: dict(num_groups=12)),
    "no groups": (ZeroDivisionError, lambda good: dict(num_groups=0)),
    "negative groups": (RuntimeError, lambda good: dict(num_groups=-2)),
    "float groups": (TypeError, lambda good: dict(num_groups=2.0)),
    "bool groups": (TypeError, lambda good: dict(num_groups=True)),
    "str groups": (TypeError, lambda good: dict(num_groups="2")),
    "groups are None": (TypeError, lambda good: dict(num_groups=None)),
    "weight shape": (RuntimeError, lambda good: dict(weight=good["weight"][1:])),
    "weight rank": (RuntimeError, lambda good: dict(weight=good["weight"][None])),
    "bias shape": (RuntimeError, lambda good: dict(bias=good["bias"][:0])),
    "input on meta": (None, lambda good: dict(input=good["input"].to("meta"))),
    "weight on meta": (None, lambda good: dict(weight=good["weight"].to("meta"))),
    "bias on meta": (None, lambda good: dict(bias=good["bias"].to("meta"))),
    "float64 weight": (RuntimeError, lambda good: dict(weight=good["weight"].double())),
    "float64 parameters": (
        RuntimeError,
        lambda good: dict(weight=good["weight"].double(), bias=good["bias"].double()),
    ),
    "float16 bias": (RuntimeError, lambda good: dict(bias=good["bias"].half())),
    "float64 input": (RuntimeError, lambda good: dict(input=good["input"].double())),
    "int64 input": (RuntimeError, lambda good: dict(input=good["input"].long())),
    "complex input": (RuntimeError, lambda good: dict(input=good["input"].to(torch.complex64))),
    "sparse input": (RuntimeError, lambda good: dict(input=good["input"].to_sparse())),
    "list input": ((TypeError, AttributeError), lambda good: dict(input=[1.0, 2.0])),
    "list weight": (TypeError, lambda good: dict(weight=[1.0] * 6)),
    "no input": ((TypeError, AttributeError), lambda good: dict(input=None)),
    "str eps": (TypeError, lambda good: dict(eps="1e-5")),
}


@pytest.mark.parametrize(("expected", "change"), BAD_GROUP_NORM.values(), ids=BAD_GROUP_NORM)
def test_bad_group_norm_calls(device, expected, change):
    expected = known(expected, device)
    arguments = group_norm_call(device)
    arguments |= change(arguments)
    before = before_call(arguments)
    theirs = outcome(F.group_norm, **arguments)
    ours = outcome(normreg.functional.group_norm, **arguments)
    assert expected is None or isinstance(theirs, expected)
    assert_same_outcome(ours, theirs)
    assert_unchanged(arguments, before)
