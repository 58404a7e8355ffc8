"""Bad calls of BatchNorm and InstanceNorm end as torch's do, and change nothing."""

import pytest
import torch
import torch.nn.functional as F
from outcomes import assert_same_outcome, assert_unchanged, batch_norm_call, before_call, known, outcome
from support.reference import error, unit

import normreg

BAD_BATCH_NORM = {
    "rank 1": (RuntimeError, lambda good: dict(input=good["input"][0, 0])),
    "channel count": (RuntimeError, lambda good: dict(input=good["input"][:, 1:])),
    "channels last": (RuntimeError, lambda good: dict(input=good["input"].transpose(1, 2))),
    "negative eps": (ValueError, lambda good: dict(eps=-1e-5)),
    "weight shape": (RuntimeError, lambda good: dict(weight=good["weight"][1:])),
    "bias shape": (RuntimeError, lambda good: dict(bias=good["bias"][:0])),
    "running_mean shape": (RuntimeError, lambda good: dict(running_mean=good["running_mean"][1:])),
    "running_var shape": (RuntimeError, lambda good: dict(running_var=good["running_var"].repeat(2))),
    "no running_var": ((RuntimeError, ValueError), lambda good: dict(running_var=None)),
    "no running_mean": ((RuntimeError, ValueError), lambda good: dict(running_mean=None)),
    "input on meta": (None, lambda good: dict(input=good["input"].to("meta"))),
    "weight on meta": (None, lambda good: dict(weight=good["weight"].to("meta"))),
    "running_mean on meta": (None, lambda good: dict(running_mean=good["running_mean"].to("meta"))),
    "float64 weight": (None, lambda good: dict(weight=good["weight"].double())),
    "float64 running_mean": (None, lambda good: dict(running_mean=good["running_mean"].double())),
    "float64 running_var": (None, lambda good: dict(running_var=good["running_var"].double())),
    "float16 parameters": (
        None,
        lambda good: dict(weight=good["weight"].half(), bias=good["bias"].half()),
    ),
    "float64 input": (None, lambda good: dict(input=good["input"].double())),
    "int64 input": (RuntimeError, lambda good: dict(input=good["input"].long())),
    "bool input": (RuntimeError, lambda good: dict(input=good["input"] > 0)),
    "complex input": (RuntimeError, lambda good: dict(input=good["input"].to(torch.complex64))),
    "sparse input": (RuntimeError, lambda good: dict(input=good["input"].to_sparse())),
    "list input": ((TypeError, AttributeError), lambda good: dict(input=[1.0, 2.0])),
    "list weight": (TypeError, lambda good: dict(weight=[1.0] * 5)),
    "str momentum": (TypeError, lambda good: dict(momentum="0.1")),
    "str eps": (TypeError, lambda good: dict(eps="1e-5")),
}
BAD_IN_TRAINING = {
    "rank 0": (IndexError, lambda good: dict(input=good["input"][0, 0, 0])),
    "one value": (ValueError, lambda good: dict(input=good["input"][:1, :, 0])),
    "one value, three dimensions": (ValueError, lambda good: dict(input=good["input"][:1, :, :1])),
    "eps 0": (ValueError, lambda good: dict(eps=0.0)),
    "training is an int": (TypeError, lambda good: dict(training=1)),
}
BAD_IN_INFERENCE = {
    "training is an int": (TypeError, lambda good: dict(training=0)),
    "training is None": (TypeError, lambda good: dict(training=None)),
    "rank 0": (RuntimeError, lambda good: dict(input=good["input"][0, 0, 0])),
    "no running statistics": (RuntimeError, lambda good: dict(running_mean=None, running_var=None)),
}
BATCH_NORM_CASES = [
    pytest.param(training, *case, id=f"{mode}: {name}")
    for mode, training, special in (("train", True, BAD_IN_TRAINING), ("eval", False, BAD_IN_INFERENCE))
    for name, case in (BAD_BATCH_NORM | special).items()
]


@pytest.mark.parametrize(("training", "expected", "change"), BATCH_NORM_CASES)
def test_bad_batch_norm_calls(device, training, expected, change):
    expected = known(expected, device)
    arguments = batch_norm_call(device)
    arguments |= change(arguments)
    before, torchs = before_call(arguments), before_call(arguments)
    counter = torch.tensor(7, device=device)
    theirs = outcome(F.batch_norm, **dict(training=training) | arguments | torchs)
    given = dict(training=training, num_batches_tracked=counter) | arguments
    ours = outcome(normreg.functional.batch_norm, **given)
    assert expected is None or isinstance(theirs, expected)
    assert_same_outcome(ours, theirs)
    # torch's own operator writes the running statistics before it meets a parameter on meta
    assert_unchanged(arguments, before if expected else torchs)
    assert counter.item() == 7 + (training and not isinstance(theirs, Exception))


BAD_IN_INSTANCE_NORM = {
    "rank 0": (None, lambda good: dict(input=good["input"][0, 0, 0])),
    "rank 1": (None, lambda good: dict(input=good["input"][0, 0])),
    "int use_input_stats": (TypeError, lambda good: dict(use_input_stats=1)),
    "use_input_stats is None": (TypeError, lambda good: dict(use_input_stats=None)),
    "momentum is None": (TypeError, lambda good: dict(momentum=None)),
    "negative eps": (None, lambda good: dict(eps=-1e-5)),
    "eps 0": (None, lambda good: dict(eps=0.0)),
}
INSTANCE_NORM_CASES = [
    pytest.param(use_input_stats, *case, id=f"{mode}: {name}")
    for mode, use_input_stats, special in (
        (
            "input",
            True,
            {
                "no positions but one": (ValueError, lambda good: dict(input=good["input"][:, :, :1])),
                "two dimensions": (ValueError, lambda good: dict(input=good["input"][:, :, 0])),
            },
        ),
        (
            "running",
            False,
            {"no statistics": (RuntimeError, lambda good: dict(running_mean=None, running_var=None))},
        ),
    )
    for name, case in (BAD_BATCH_NORM | BAD_IN_INSTANCE_NORM | special).items()
]


@pytest.mark.parametrize(("use_input_stats", "expected", "change"), INSTANCE_NORM_CASES)
def test_bad_instance_norm_calls(device, launches, use_input_stats, expected, change):
    expected = known(expected, device)
    arguments = batch_norm_call(device) | dict(use_input_stats=use_input_stats)
    arguments |= change(arguments)
    before, torchs = before_call(arguments), before_call(arguments)
    theirs = outcome(F.instance_norm, **arguments | torchs)
    ours = outcome(normreg.functional.instance_norm, **arguments)
    assert expected is None or isinstance(theirs, (expected, RuntimeError, ValueError, TypeError))
    assert_same_outcome(ours, theirs)
    assert_unchanged(arguments, before if isinstance(theirs, Exception) else torchs)
    assert launches == []


def test_eps_0_in_inference(device):
    """torch 2.11 refuses an eps of 0, torch 2.13 computes with it."""
    arguments = batch_norm_call(device) | dict(eps=0.0)
    theirs = outcome(F.batch_norm, **arguments)
    ours = outcome(normreg.functional.batch_norm, **arguments)
    if isinstance(theirs, Exception):
        assert_same_outcome(ours, theirs)
    else:
        assert error(ours, theirs.double()) <= 2 * unit(theirs, torch.float32)
