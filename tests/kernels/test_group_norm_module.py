"""GroupNorm under autocast, what it saves, and the modules without and with an activation."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from over_channels import inputs_for
from support.reference import (
    DTYPES,
    assert_accurate,
    error,
    unit,
)

import normreg


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast(device, launches, dtype):
    """Autocast gives float32 from 16 bits where torch's does: on a GPU."""
    x = torch.randn(5, 6, 4, device=device, dtype=dtype)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        theirs = F.group_norm(x, 2)
        assert launches == []
        ours = normreg.functional.group_norm(x, 2)
    assert launches == ["group_norm_forward_kernel"]
    assert_accurate(ours, theirs, F.group_norm(x.double(), 2))


def test_statistics_are_saved_in_float32(device):
    saved = []
    x, weight, bias = inputs_for((4, 6, 5, 5), torch.bfloat16, device)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        normreg.functional.group_norm(x, 2, weight, bias)
    inputs = [(torch.bfloat16, x.numel()), (torch.bfloat16, 6)]
    assert [(t.dtype, t.numel()) for t in saved] == [*inputs, (torch.float32, 4 * 2 * 3)]


def test_without_gradients_nothing_is_saved(device):
    x = torch.randn(4, 8, device=device, requires_grad=True)
    with torch.no_grad():
        assert not normreg.functional.group_norm(x, 2).requires_grad
    with torch.inference_mode():
        assert normreg.functional.group_norm(x, 2).is_inference()


@pytest.mark.parametrize("affine", [True, False])
def test_module(device, affine):
    theirs, ours = (
        library.GroupNorm(3, 6, eps=1e-3, affine=affine, device=device) for library in (torch.nn, normreg)
    )
    assert repr(ours) == repr(theirs)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 6, 4, device=device)
    assert error(ours(input=x), theirs.double()(x.double())) <= 2 * unit(theirs(x.double()), torch.float32)


# With an activation.


def test_another_activation_is_refused(device):
    with pytest.raises(
        ValueError, match=r"expected act to be None or one of relu, .*, got 'tanh': use act=None"
    ):
        normreg.GroupNormAct(2, 4, act="tanh")
    with pytest.raises(ValueError, match="got 'swish'"):
        normreg.functional.group_norm_act(torch.zeros(2, 4, 3, device=device), 2, act="swish")
    with pytest.raises(
        TypeError, match=r"^expected eps, .* got 'silu': pass .* GroupNormAct\(2, 4, act='relu'\)$"
    ):
        normreg.GroupNormAct(2, 4, "silu")


@pytest.mark.parametrize(
    ("sizes", "remedy"),
    [((8, 4), "the other way round, 4 groups"), ((3, 4), "one that does"), ((0, 4), "one")],
)
def test_groups_that_do_not_divide(sizes, remedy):
    with pytest.raises(ValueError, match=rf"got GroupNormAct\({sizes[0]}, 4\): pass .*{remedy}"):
        normreg.GroupNormAct(*sizes)


@pytest.mark.parametrize("affine", [True, False])
def test_module_with_an_activation(device, affine):
    """The module has the state of torch's GroupNorm, and an activation."""
    ours = normreg.GroupNormAct(3, 6, 1e-3, affine, device=device, act="leaky_relu", negative_slope=0.3)
    theirs = torch.nn.GroupNorm(3, 6, eps=1e-3, affine=affine, device=device)
    assert isinstance(ours, torch.nn.GroupNorm)
    ending = ", act='leaky_relu', negative_slope=0.3)"
    assert repr(ours) == f"GroupNormAct{repr(theirs).removeprefix('GroupNorm')[:-1]}{ending}"
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 6, 4, device=device)
    torch.testing.assert_close(ours(input=x), F.leaky_relu(theirs(x), 0.3))
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert repr(twin) == repr(ours)
        assert torch.equal(twin(x), ours(x))


def test_replace_and_restore_leave_it(device):
    model = torch.nn.Sequential(normreg.GroupNormAct(2, 4), torch.nn.GroupNorm(2, 4)).to(device)
    assert not normreg.replace(model).skipped
    assert [type(m) for m in model] == [normreg.GroupNormAct, normreg.GroupNorm]
    normreg.restore(model)
    assert [type(m) for m in model] == [normreg.GroupNormAct, torch.nn.GroupNorm]
