"""Bad calls of dropout and of modules, and bad constructions, end as torch's do."""

import copy

import pytest
import torch
import torch.nn.functional as F
from outcomes import assert_same_outcome, assert_unchanged, before_call, known, outcome

import normreg


def leaf(device):
    return torch.ones(4, 4, device=device, requires_grad=True)


def inference_tensor(device):
    with torch.inference_mode():
        return torch.ones(4, 4, device=device)


BAD_DROPOUT = {
    "p below 0": (ValueError, leaf, dict(p=-0.1)),
    "p above 1": (ValueError, leaf, dict(p=1.1)),
    "p is nan": (RuntimeError, leaf, dict(p=float("nan"))),
    "p is inf": (ValueError, leaf, dict(p=float("inf"))),
    "p above 1 in eval": (ValueError, leaf, dict(p=1.1, training=False)),
    "p is None": (TypeError, leaf, dict(p=None)),
    "p is a str": (TypeError, leaf, dict(p="0.5")),
    "training is an int": (TypeError, leaf, dict(training=1)),
    "training is a str": (TypeError, leaf, dict(training="no")),
    "int64": (None, lambda device: leaf(device).long(), {}),
    "bool": (None, lambda device: leaf(device) > 0, {}),
    "list": (TypeError, lambda device: [1.0], {}),
    "inplace of a leaf": (RuntimeError, leaf, dict(inplace=True)),
    "inplace of a leaf, p 1": (RuntimeError, leaf, dict(inplace=True, p=1.0)),
    "inplace of a Parameter": (
        RuntimeError,
        lambda device: torch.nn.Parameter(leaf(device)),
        dict(inplace=True),
    ),
    "inplace of a leaf's view": (RuntimeError, lambda device: leaf(device)[:2], dict(inplace=True)),
    "inplace of one of several views": (
        RuntimeError,
        lambda device: leaf(device).mul(2).unbind()[0],
        dict(inplace=True),
    ),
    "inplace of an expanded tensor": (
        RuntimeError,
        lambda device: torch.ones(1, 4, device=device).expand(3, 4),
        dict(inplace=True),
    ),
    "inplace of an inference tensor": (RuntimeError, inference_tensor, dict(inplace=True)),
}


@pytest.mark.parametrize(("expected", "make", "options"), BAD_DROPOUT.values(), ids=BAD_DROPOUT)
@pytest.mark.parametrize("name", ["dropout", "dropout1d", "alpha_dropout", "feature_alpha_dropout"])
def test_bad_dropout_calls(device, name, expected, make, options):
    x, torchs = make(device), make(device)
    options = dict(training=True) | options
    before = before_call(dict(input=x))
    theirs = outcome(getattr(F, name), torchs, **options)
    if name == "dropout1d" and not isinstance(torchs, torch.Tensor):
        expected = AttributeError  # of its number of dimensions
    assert known(expected, device) is None or isinstance(theirs, expected)
    torch.manual_seed(0)
    assert_same_outcome(outcome(getattr(normreg.functional, name), x, **options), theirs)
    # torch's own operator writes into an inference tensor before it refuses to
    if make is not inference_tensor:
        assert_unchanged(dict(input=x), before)


BAD_MODULE_INPUTS = {
    f"BatchNorm{dims}d, {rank} dimensions": (f"BatchNorm{dims}d", (2, 4, 3, 3, 3, 3)[:rank])
    for dims, ranks in ((1, (2, 3)), (2, (4,)), (3, (5,)))
    for rank in range(7)
    if rank not in ranks
} | {
    "BatchNorm1d, channels": ("BatchNorm1d", (3, 5)),
    "BatchNorm1d, length and channels swapped": ("BatchNorm1d", (3, 5, 4)),
    "BatchNorm2d, channels": ("BatchNorm2d", (3, 5, 2, 2)),
    "BatchNorm3d, channels": ("BatchNorm3d", (3, 5, 2, 2, 2)),
    "BatchNorm1d, one value": ("BatchNorm1d", (1, 4)),
    "BatchNorm1d, one value of length 1": ("BatchNorm1d", (1, 4, 1)),
    "BatchNorm2d, one value": ("BatchNorm2d", (1, 4, 1, 1)),
    "BatchNorm3d, one value": ("BatchNorm3d", (1, 4, 1, 1, 1)),
    "LayerNorm, last dimension": ("LayerNorm", (3, 5)),
    "LayerNorm, 0 dimensions": ("LayerNorm", ()),
    "InstanceNorm1d, 1 dimension": ("InstanceNorm1d", (4,)),
    "InstanceNorm1d, 4 dimensions": ("InstanceNorm1d", (2, 4, 3, 3)),
    "InstanceNorm2d, 2 dimensions": ("InstanceNorm2d", (4, 3)),
    "InstanceNorm3d, 3 dimensions": ("InstanceNorm3d", (4, 3, 3)),
    "InstanceNorm2d, one value": ("InstanceNorm2d", (3, 4, 1, 1)),
    "InstanceNorm1d, one value": ("InstanceNorm1d", (4, 1)),
    "RMSNorm, last dimension": ("RMSNorm", (3, 5)),
    "RMSNorm, 0 dimensions": ("RMSNorm", ()),
}


@pytest.mark.parametrize(("kind", "shape"), BAD_MODULE_INPUTS.values(), ids=BAD_MODULE_INPUTS)
def test_bad_module_inputs(device, kind, shape):
    """Torch counts the batch that it then refuses; we do not."""
    theirs, ours = (getattr(library, kind)(4, device=device) for library in (torch.nn, normreg))
    state = copy.deepcopy(ours.state_dict())
    x = torch.randn(shape, device=device)
    before = x.clone()
    raised = outcome(theirs, x)
    assert isinstance(raised, (RuntimeError, ValueError))
    assert_same_outcome(outcome(ours, x), raised)
    assert_unchanged(ours.state_dict(), state)
    assert torch.equal(x, before)


def test_a_refused_batch_leaves_a_cumulative_average(device):
    module = normreg.BatchNorm1d(4, momentum=None, device=device)
    module(torch.randn(3, 4, device=device))
    state = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module(torch.randn(1, 4, device=device))
    assert_unchanged(module.state_dict(), state)
    assert module.num_batches_tracked.item() == 1


BAD_CONSTRUCTIONS = {
    "no size": ("LayerNorm", (), {}),
    "no channels": ("BatchNorm2d", (), {}),
    "str size": ("LayerNorm", ("4",), {}),
    "str channels": ("BatchNorm1d", ("4",), {}),
    "float channels": ("BatchNorm1d", (4.0,), {}),
    "negative size": ("LayerNorm", (-4,), {}),
    "negative channels": ("BatchNorm3d", (-4,), {}),
    "unknown option of LayerNorm": ("LayerNorm", (4,), dict(momentum=0.1)),
    "unknown option of BatchNorm": ("BatchNorm2d", (4,), dict(elementwise_affine=False)),
    "unknown option of RMSNorm": ("RMSNorm", (4,), dict(bias=True)),
    "unknown option of Dropout": ("Dropout", (), dict(seed=1)),
    "unknown option of GroupNorm": ("GroupNorm", (2, 4), dict(momentum=0.1)),
    "unknown option of InstanceNorm": ("InstanceNorm2d", (4,), dict(elementwise_affine=False)),
    "groups do not divide": ("GroupNorm", (3, 4), {}),
    "no groups": ("GroupNorm", (0, 4), {}),
    "no channels of groups": ("GroupNorm", (2,), {}),
    "unknown device": ("BatchNorm2d", (4,), dict(device="nowhere")),
    "integer dtype": ("LayerNorm", (4,), dict(dtype=torch.int64)),
    "p below 0": ("Dropout", (-0.1,), {}),
    "p above 1": ("Dropout", (1.5,), {}),
    "p is None": ("Dropout", (None,), {}),
} | {
    f"{what} of {kind}": (kind, arguments, options)
    for kind in ("Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")
    for what, arguments, options in (("p", (1.5,), {}), ("unknown option", (), dict(generator=None)))
}


@pytest.mark.parametrize(("kind", "arguments", "options"), BAD_CONSTRUCTIONS.values(), ids=BAD_CONSTRUCTIONS)
def test_bad_constructions(kind, arguments, options):
    theirs, ours = (outcome(getattr(library, kind), *arguments, **options) for library in (torch.nn, normreg))
    assert isinstance(theirs, Exception)
    assert_same_outcome(ours, theirs)
