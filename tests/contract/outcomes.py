"""Outcomes of calls, a result or an exception, compared with torch's, and what dispatch says of tensors."""

import pytest
import torch
from operations import OPERATIONS
from support.reference import outcome as outcome

from normreg.functional import dispatch


def assert_same_outcome(ours, theirs):
    if isinstance(theirs, Exception):
        assert (type(ours), str(ours)) == (type(theirs), str(theirs))
        return
    assert not isinstance(ours, Exception), f"torch returns, normreg raised {ours!r}"
    assert type(ours) is type(theirs)
    assert (ours.dtype, ours.device, ours.shape) == (theirs.dtype, theirs.device, theirs.shape)
    if not ours.is_meta:
        assert torch.equal(*(t.detach().nan_to_num(nan=7.0) for t in (ours, theirs)))


def tensors_of(arguments):
    return {
        name: t for name, t in arguments.items() if isinstance(t, torch.Tensor) and t.device.type != "meta"
    }


def assert_unchanged(arguments, before):
    for name, tensor in tensors_of(arguments).items():
        assert torch.equal(tensor.to_dense(), before[name].to_dense()), f"{name} was changed"


def before_call(arguments):
    return {name: tensor.detach().clone() for name, tensor in tensors_of(arguments).items()}


def known(expected, device):
    """The exception that torch is known to raise on a CPU; on a GPU torch has other checks.

    Tables of bad calls name it, or None where torch's version decides, and what is changed about a good call.
    """
    return expected if device.type == "cpu" else None


def batch_norm_call(device):
    weight, bias, running_mean, running_var = torch.rand(4, 5, device=device) + 0.5
    return dict(
        input=torch.randn(3, 5, 4, device=device),
        running_mean=running_mean,
        running_var=running_var,
        weight=weight,
        bias=bias,
        momentum=0.1,
        eps=1e-5,
    )


def reasons(x):
    """{operation: why it goes to torch, or None} for an input of 4 channels and 4 columns."""
    return {
        "layer_norm": dispatch.layer_norm(x, (4,), None, None, 1e-5),
        "rms_norm": dispatch.rms_norm(x, (4,), None, None),
        "batch_norm": dispatch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, None),
        "group_norm": dispatch.group_norm(x, 2, None, None, 1e-5),
        "instance_norm": dispatch.instance_norm(x, None, None, None, None, True, 0.1, 1e-5),
        "dropout": dispatch.dropout(x, 0.5, False),
    }


NO_REASON = dict.fromkeys(("layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm", "dropout"))


class Tagged(torch.Tensor):
    pass


nested_is_a_prototype = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning"
)


DISPATCHED = {name: row for name, row in OPERATIONS.items() if row.launches}
every_operation = pytest.mark.parametrize("operation", DISPATCHED)


def shape_of(operation):
    return DISPATCHED[operation].shapes[0]
