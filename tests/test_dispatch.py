import copy
import json
import math

import formulas
import programs
import pytest
import torch
import torch.nn.functional as F
from operations import LIBRARIES, OPERATIONS, OURS, every_kind, torch_layer
from reference import DTYPES, copies, error, unit
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import normreg
from normreg.functional import dispatch


def outcome(call, *arguments, **options):
    """The result, or the exception that was raised instead."""
    try:
        return call(*arguments, **options)
    except Exception as raised:
        return raised


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


# Bad calls: the exception that torch is known to raise on a CPU, or None where its version decides, and what
# is changed about a good call. The outcome is torch's in either case; on a GPU torch has other checks.


def known(expected, device):
    return expected if device.type == "cpu" else None


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
        RuntimeError, lambda good: dict(weight=None, bias=None, normalized_shape=(3,)),
    ),
    "input on meta": (None, lambda good: dict(input=good["input"].to("meta"))),
    "weight on meta": (None, lambda good: dict(weight=good["weight"].to("meta"))),
    "bias on meta": (None, lambda good: dict(bias=good["bias"].to("meta"))),
    "float64 weight": (RuntimeError, lambda good: dict(weight=good["weight"].double())),
    "float64 parameters": (
        RuntimeError, lambda good: dict(weight=good["weight"].double(), bias=good["bias"].double()),
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
}  # fmt: skip


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
    "rank 0": ValueError, "float64 weight": None, "float64 input": None, "complex input": None,
}  # fmt: skip
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
        ValueError, lambda good: dict(input=good["input"][:1, :, :1], num_groups=6),
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
        RuntimeError, lambda good: dict(weight=good["weight"].double(), bias=good["bias"].double()),
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
}  # fmt: skip


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
        None, lambda good: dict(weight=good["weight"].half(), bias=good["bias"].half()),
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
}  # fmt: skip
BAD_IN_TRAINING = {
    "rank 0": (IndexError, lambda good: dict(input=good["input"][0, 0, 0])),
    "one value": (ValueError, lambda good: dict(input=good["input"][:1, :, 0])),
    "one value, three dimensions": (ValueError, lambda good: dict(input=good["input"][:1, :, :1])),
    "eps 0": (ValueError, lambda good: dict(eps=0.0)),
}
BAD_IN_INFERENCE = {
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
    theirs = outcome(F.batch_norm, **arguments | torchs, training=training)
    ours = outcome(normreg.functional.batch_norm, **arguments, training=training, num_batches_tracked=counter)
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
    """Refused by torch 2.11, computed by 2.13."""
    arguments = batch_norm_call(device) | dict(eps=0.0)
    theirs = outcome(F.batch_norm, **arguments)
    ours = outcome(normreg.functional.batch_norm, **arguments)
    if isinstance(theirs, Exception):
        assert_same_outcome(ours, theirs)
    else:
        assert error(ours, theirs.double()) <= 2 * unit(theirs, torch.float32)


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
    "int64": (None, lambda device: leaf(device).long(), {}),
    "bool": (None, lambda device: leaf(device) > 0, {}),
    "list": (TypeError, lambda device: [1.0], {}),
    "inplace of a leaf": (RuntimeError, leaf, dict(inplace=True)),
    "inplace of a leaf, p 1": (RuntimeError, leaf, dict(inplace=True, p=1.0)),
    "inplace of a Parameter": (
        RuntimeError, lambda device: torch.nn.Parameter(leaf(device)), dict(inplace=True),
    ),
    "inplace of a leaf's view": (RuntimeError, lambda device: leaf(device)[:2], dict(inplace=True)),
    "inplace of one of several views": (
        RuntimeError, lambda device: leaf(device).mul(2).unbind()[0], dict(inplace=True),
    ),
    "inplace of an expanded tensor": (
        RuntimeError, lambda device: torch.ones(1, 4, device=device).expand(3, 4), dict(inplace=True),
    ),
    "inplace of an inference tensor": (RuntimeError, inference_tensor, dict(inplace=True)),
}  # fmt: skip


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


# Which path is taken, and why.


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

ORDINARY = {
    "plain": lambda x: x,
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "requires grad": lambda x: x.requires_grad_(),
    "Parameter": lambda x: torch.nn.Parameter(x),
    "not a leaf": lambda x: x.requires_grad_() * 2,
    "transposed": lambda x: x.permute(2, 3, 0, 1),
    "sliced": lambda x: x[:, :, 1:3],
    "expanded": lambda x: x[:1].expand(9, 4, 4, 4),
}


@pytest.mark.parametrize("make", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_tensors_take_the_kernel(device, make):
    x = make(torch.randn(4, 4, 4, 4, device=device))
    assert reasons(x) == NO_REASON
    with torch.no_grad():
        assert reasons(x) == NO_REASON
    with torch.inference_mode():
        assert reasons(x) == NO_REASON
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert reasons(x) == NO_REASON


def test_channels_last_is_torchs_in_rms_norm_alone(device, launches):
    """Its result keeps the strides there, which that of torch's layer_norm does not."""
    x = torch.randn(2, 3, 4, 4, device=device).contiguous(memory_format=torch.channels_last)
    kept = "the input's strides are those of channels_last, which torch's result keeps"
    for t in (x, x[:, :, 1:], torch.randn(2, 3, 3, 4, 5, device=device).permute(0, 4, 1, 2, 3)):
        assert dispatch.layer_norm(t, t.shape[-1:], None, None, 1e-5) is None
        assert dispatch.rms_norm(t, t.shape[-1:], None, None) == kept
        y, expected = (library.rms_norm(t, t.shape[-1:]) for library in (normreg.functional, F))
        assert torch.equal(y, expected)
        assert y.stride() == expected.stride() != y.contiguous().stride()
    assert launches == []
    assert dispatch.rms_norm(x.permute(0, 2, 3, 1), (3,), None, None) is None


def test_channels_last_is_torchs_in_group_norm_where_its_result_keeps_it(device, launches):
    x = torch.randn(2, 4, 3, 5, device=device).contiguous(memory_format=torch.channels_last)
    y, expected = (library.group_norm(x, 2) for library in (normreg.functional, F))
    assert y.stride() == expected.stride()
    kept = not expected.is_contiguous()
    assert (launches == []) == kept
    assert bool(dispatch.group_norm(x, 2, None, None, 1e-5)) == kept
    assert dispatch.group_norm(x.contiguous(), 2, None, None, 1e-5) is None
    assert dispatch.instance_norm(x, None, None, None, None, True, 0.1, 1e-5) is None


def fake_images(kind, dtype=torch.float32):
    return torch.empty_strided((2, 4, 3, 5), (60, 1, 20, 4), dtype=dtype, device=kind)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_group_norm_keeps_channels_last_where_this_torch_does(kind):
    """By what torch says of tensors without memory, which need no GPU."""
    with FakeTensorMode():
        x, weight = fake_images(kind), torch.empty_strided((4,), (1,), device=kind)
        kept = F.group_norm(x, 2, weight, weight).stride() == x.stride()
        assert dispatch._group_norm_keeps_channels_last(x, (weight, weight)) == kept


@pytest.mark.parametrize("kept", [True, False])
def test_group_norm_takes_a_gpus_parameters_of_another_dtype(kept, monkeypatch):
    """torch does not, except where autocast converts both, so there is no result to be like."""
    monkeypatch.setattr(dispatch, "GPU_GROUP_NORM_KEEPS_CHANNELS_LAST", kept)
    with FakeTensorMode():
        x, weight = fake_images("cuda", torch.half), torch.empty_strided((4,), (1,), device="cuda")
        assert dispatch._group_norm_keeps_channels_last(x, (None, None)) == kept
        assert dispatch._group_norm_keeps_channels_last(x, (weight.half(), None)) == kept
        assert not dispatch._group_norm_keeps_channels_last(x, (weight, weight))
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
        assert dispatch._group_norm_keeps_channels_last(x, (weight, weight)) == kept


class Tagged(torch.Tensor):
    pass


UNUSUAL = {
    "int32": (lambda x: x.int(), "torch.int32"),
    "bool": (lambda x: x > 0, "torch.bool"),
    "complex": (lambda x: x.to(torch.complex64), "torch.complex64"),
    "meta": (lambda x: x.to("meta"), "meta tensors"),
    "sparse": (lambda x: x.to_sparse(), "torch.sparse_coo"),
    "empty": (lambda x: x[:0], "empty"),
    "subclass": (lambda x: x.as_subclass(Tagged), "Tagged"),
    "fake": (lambda x: FakeTensorMode().from_tensor(x), "FakeTensor"),
    "jagged": (lambda x: torch.nested.as_nested_tensor([*x], layout=torch.jagged), "NestedTensor"),
    "list": (lambda x: x.tolist(), "list"),
}

# also used by torch's own decompositions for forward-mode differentiation
torchscript_is_deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.")
nested_is_a_prototype = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning"
)


@nested_is_a_prototype
@pytest.mark.parametrize(("make", "cause"), UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_tensors_go_to_torch(device, make, cause):
    for operation, reason in reasons(make(torch.randn(3, 4, 4, device=device))).items():
        assert reason, operation
        assert cause in reason


def test_other_reasons(device):
    x, y = torch.randn(3, 4, device=device), torch.randn(4, device=device)
    cases = [
        (dispatch.layer_norm(x, (3, 5), None, None, 1e-5), "(3, 4) does not end in normalized_shape (3, 5)"),
        (dispatch.layer_norm(x, (), None, None, 1e-5), "normalized_shape ()"),
        (dispatch.layer_norm(x, (4,), y[:2], None, 1e-5), "(2,), not normalized_shape (4,)"),
        (dispatch.layer_norm(x, (4,), None, y[:, None], 1e-5), "(4, 1), not normalized_shape (4,)"),
        (dispatch.layer_norm(x, (4,), y.to("meta"), None, 1e-5), "on meta"),
        (dispatch.layer_norm(x, (4,), y.as_subclass(Tagged), None, 1e-5), "Tagged"),
        (dispatch.layer_norm(x, (4,), y.double(), None, 1e-5), "torch.float64"),
        (dispatch.rms_norm(x, (3, 5), None, None), "(3, 4) does not end in normalized_shape (3, 5)"),
        (dispatch.rms_norm(x, (4,), y[:2], None), "(2,), not normalized_shape (4,)"),
        (dispatch.rms_norm(x, (4,), y.double(), None), "torch.float64"),
        (dispatch.rms_norm(x, (4,), y.to("meta"), None), "on meta"),
        (dispatch.rms_norm(x, (4,), None, "1e-5"), "eps is a str"),
        (dispatch.batch_norm(y, None, None, None, None, True, 0.1, 1e-5, None), "1 dimensions"),
        (dispatch.batch_norm(x, None, None, y[:1], None, True, 0.1, 1e-5, None), "(1,), the input 4"),
        (dispatch.batch_norm(x, None, None, None, y[None], True, 0.1, 1e-5, None), "(1, 4), the input 4"),
        (dispatch.batch_norm(x, y, None, None, None, True, 0.1, 1e-5, None), "without the other"),
        (dispatch.batch_norm(x, None, y, None, None, False, 0.1, 1e-5, None), "without the other"),
        (dispatch.batch_norm(x, None, None, None, None, False, 0.1, 1e-5, None), "inference needs running"),
        (dispatch.batch_norm(x[:1], None, None, None, None, True, 0.1, 1e-5, None), "one value per channel"),
        (dispatch.batch_norm(x, None, None, None, None, True, 0.1, 0.0, None), "eps is 0.0"),
        (dispatch.batch_norm(x, y, y, None, None, False, 0.1, -1.0, None), "eps is -1.0"),
        (dispatch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, y.to("meta")), "on meta"),
        (dispatch.group_norm(y, 2, None, None, 1e-5), "1 dimensions, of at least 2"),
        (dispatch.group_norm(x, 3, None, None, 1e-5), "4 channels are not 3 groups"),
        (dispatch.group_norm(x, 0, None, None, 1e-5), "4 channels are not 0 groups"),
        (dispatch.group_norm(x, True, None, None, 1e-5), "num_groups is a bool"),
        (dispatch.group_norm(x[:1], 4, None, None, 1e-5), "only one value"),
        (dispatch.group_norm(x, 2, y[:2], None, 1e-5), "(2,), the input 4 channels"),
        (dispatch.group_norm(x, 2, y.double(), None, 1e-5), "torch.float64"),
        (dispatch.group_norm(x, 2, None, y.to("meta"), 1e-5), "on meta"),
        (dispatch.instance_norm(x, None, None, None, None, True, 0.1, 1e-5), "one value per channel of a"),
        (dispatch.instance_norm(x, None, None, None, None, False, 0.1, 1e-5), "inference needs running"),
        (dispatch.instance_norm(x, None, None, None, None, 1, 0.1, 1e-5), "use_input_stats is a int"),
        (dispatch.instance_norm(x, y, None, None, None, True, 0.1, 1e-5), "without the other"),
        (dispatch.instance_norm(x, None, None, None, None, True, None, 1e-5), "momentum is a NoneType"),
        (dispatch.dropout(x, 0.0, False), "p is 0.0"),
        (dispatch.dropout(x, 1.5, False), "p is 1.5"),
        (dispatch.dropout(y, 0.5, False, 2), "1 dimensions, of at least 2"),
        (dispatch.dropout(y[0], 0.5, False, 1), "0 dimensions, of at least 1"),
        (dispatch.dropout(x.requires_grad_(), 0.5, True), "leaf that requires grad"),
    ]  # fmt: skip
    for reason, cause in cases:
        assert cause in reason
    with torch.no_grad():
        assert dispatch.dropout(x, 0.5, True) is None


def assert_same_as_torch(arguments, **options):
    """One outcome of both batch_norms, in their results and in what they leave in their arguments."""
    torchs, ours = (dict(zip(arguments, copies(arguments.values()))) for _ in range(2))
    theirs = outcome(F.batch_norm, **torchs, **options)
    assert_same_outcome(outcome(normreg.functional.batch_norm, **ours, **options), theirs)
    assert_unchanged(ours, torchs)


@pytest.mark.parametrize("parameter_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_that_the_kernel_takes(device, launches, dtype, parameter_dtype):
    """One dtype for all, or float32 parameters and buffers beside 16 bits; torch judges the rest."""
    good = batch_norm_call(device)
    arguments = {
        name: t.to(dtype if name == "input" else parameter_dtype) for name, t in tensors_of(good).items()
    }
    x = arguments["input"]
    accepted = dtype == parameter_dtype or (dtype.itemsize == 2 and parameter_dtype == torch.float32)
    weight, bias = arguments["weight"], arguments["bias"]
    running = arguments["running_mean"], arguments["running_var"]
    answers = [
        dispatch.layer_norm(x.transpose(1, 2), (5,), weight, bias, 1e-5),
        dispatch.batch_norm(x, *running, weight, bias, True, 0.1, 1e-5, None),
        dispatch.batch_norm(x, *running, weight, bias, False, 0.1, 1e-5, None),
        dispatch.batch_norm(x, *running, None, None, False, 0.1, 1e-5, None),
        dispatch.layer_norm(x.transpose(1, 2), (5,), None, bias, 1e-5),
        dispatch.rms_norm(x.transpose(1, 2), (5,), weight, None),
        dispatch.group_norm(x, 1, weight, bias, 1e-5),
        dispatch.instance_norm(x, *running, weight, bias, True, 0.1, 1e-5),
        dispatch.instance_norm(x, *running, weight, bias, False, 0.1, 1e-5),
    ]
    if accepted:
        assert answers == [None] * len(answers)
    else:
        expected = f"the input is {dtype}, parameters and buffers are {parameter_dtype}"
        assert answers == [expected] * len(answers)
        assert_same_as_torch(arguments, training=True)
        assert_same_as_torch(arguments, training=False)
        assert launches == []


@pytest.mark.parametrize("odd", ["weight", "bias", "running_mean", "running_var"])
def test_parameters_of_two_dtypes_go_to_torch(device, launches, odd):
    arguments = {name: t.half() for name, t in tensors_of(batch_norm_call(device)).items()}
    arguments[odd] = arguments[odd].float()
    assert_same_as_torch(arguments, training=True)
    assert launches == []


# The same result where torch's operator is needed.

# l2_penalty adds in float64, which no operator of torch's does
DISPATCHED = {name: row for name, row in OPERATIONS.items() if name != "l2_penalty"}
every_operation = pytest.mark.parametrize("operation", DISPATCHED)
# which ask torch's dropout whether p is a probability, by a call that a trace keeps
JUDGES_P = ("dropout_add", "dropout_add_layer_norm", "dropout_add_rms_norm", "bias_act_dropout")


def shape_of(operation):
    return DISPATCHED[operation].shapes[0]


def of_both(call):
    """`call(library)` of torch's functions and ours, with the same random numbers."""
    results = []
    for library in LIBRARIES.values():
        torch.manual_seed(3)
        results.append(call(library))
    return results


def both(operation, transform, *arguments):
    return of_both(lambda library: transform(function(operation, library), *arguments))


def function(operation, library):
    """Of x alone: a residual and parameters are the same every time."""
    row = DISPATCHED[operation]

    def call(x):
        like = dict(dtype=x.dtype, device=x.device)
        others = (torch.linspace(0.5, 2, math.prod(s), **like).view(s) for s in row.shapes[1:])
        return row(library, x, *others)

    return call


def dual_numbers(f, x, tangent):
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(f(forward_ad.make_dual(x, tangent))))


TRANSFORMS = {
    "vmap": lambda f, x, t: torch.func.vmap(f, randomness="different")(torch.stack([x, t])),
    "grad": lambda f, x, t: torch.func.grad(lambda x: f(x).square().sum())(x),
    "vjp": lambda f, x, t: torch.func.vjp(f, x)[1](t)[0],
    "jvp": lambda f, x, t: torch.func.jvp(f, (x,), (t,)),
    "forward AD": dual_numbers,
    "per-sample gradients": lambda f, x, t: torch.func.vmap(
        torch.func.grad(lambda x: f(x).square().sum()), randomness="different"
    )(torch.stack([x, t])),
    "functionalize": lambda f, x, t: torch.func.functionalize(f)(x),
}


@torchscript_is_deprecated
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@every_operation
def test_function_transforms(device, launches, operation, transform):
    x, tangent = torch.randn(2, *shape_of(operation), device=device)
    theirs, ours = both(operation, lambda f, *given: outcome(transform, f, *given), x, tangent)
    if device.type == "cuda" and isinstance(theirs, Exception):  # its operators there have no formula for it
        assert_same_outcome(ours, theirs)
        return
    for our, their in zip(*((r if isinstance(r, tuple) else (r,)) for r in (ours, theirs)), strict=True):
        assert torch.equal(our, their)
        assert our.abs().max() > 0
    assert launches == []


@torchscript_is_deprecated
def test_after_a_transform_the_kernel_is_back(device, launches):
    x, tangent = torch.randn(2, *shape_of("layer_norm"), device=device)
    both("layer_norm", dual_numbers, x, tangent)
    both("layer_norm", TRANSFORMS["vmap"], x, tangent)
    assert reasons(torch.randn(3, 4, 4, device=device)) == NO_REASON


@every_operation
def test_tensor_subclass(device, launches, operation):
    x = torch.randn(shape_of(operation), device=device).as_subclass(Tagged)
    theirs, ours = both(operation, lambda f: f(x))
    assert type(ours) is Tagged
    assert torch.equal(ours, theirs)
    assert launches == []


class Recorder(TorchDispatchMode):
    """Notes what is computed of tensors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(isinstance(given, torch.Tensor) for given in args):
            self.calls.append(function)
        return function(*args, **(kwargs or {}))


@every_operation
def test_dispatch_modes_see_torchs_operators(device, launches, operation):
    def recorded(f):
        with Recorder() as recorder:
            y = f(x)
        return y, recorder.calls

    x = torch.randn(shape_of(operation), device=device)
    (theirs, their_calls), (ours, our_calls) = both(operation, recorded)
    assert torch.equal(ours, theirs)
    assert our_calls == their_calls
    assert len(our_calls) > 0
    assert launches == []


@every_operation
def test_make_fx(device, launches, operation):
    x, other = torch.randn(2, *shape_of(operation), device=device)

    def traced(f):
        graph = make_fx(f)(x)
        torch.manual_seed(4)
        return graph.code, graph(other)

    (their_code, theirs), (our_code, ours) = both(operation, traced)
    assert our_code == their_code
    assert torch.equal(ours, theirs)
    assert launches == []


@every_operation
def test_fake_tensors(device, launches, operation):
    def faked(f):
        with FakeTensorMode():
            dtype = torch.float16 if "drop" in operation else None
            return f(torch.empty(shape_of(operation), device=device, dtype=dtype))

    theirs, ours = both(operation, faked)
    assert type(ours) is FakeTensor
    assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
    assert launches == []


def ramps(x):
    return torch.linspace(0.5, 2, 4, device=x.device), torch.linspace(-1, 1, 4, device=x.device)


@nested_is_a_prototype
@pytest.mark.parametrize(("call", "layout"), [
    (lambda library, x: library.layer_norm(x, (4,), *ramps(x)), torch.strided),
    (lambda library, x: library.layer_norm(x, (4,), *ramps(x)), torch.jagged),
    (lambda library, x: library.rms_norm(x, (4,), ramps(x)[0]), torch.jagged),
    (lambda library, x: library.dropout(x, 0.4), torch.strided),
    (lambda library, x: library.dropout(x, 0.4), torch.jagged),
], ids=["layer_norm-strided", "layer_norm-jagged", "rms_norm-jagged", "dropout-strided",
        "dropout-jagged"])  # fmt: skip
def test_nested_tensors(device, launches, call, layout):
    x = torch.nested.nested_tensor([torch.randn(n, 4, device=device) for n in (2, 3)], layout=layout)
    theirs, ours = of_both(lambda library: call(library, x))
    for our, their in zip(ours.unbind(), theirs.unbind(), strict=True):
        assert torch.equal(our, their)
    assert launches == []


@every_operation
def test_lazily_negated_tensors(device, operation):
    """Their memory holds the opposite of their values."""
    x = torch.rand(shape_of(operation), device=device) + 1
    torch.manual_seed(3)
    y = function(operation, OURS)(torch._neg_view(x)).resolve_neg()
    torch.manual_seed(3)
    expected = function(operation, formulas)(-x)
    # a sum of six or four is in another order
    assert error(y, expected.double()) <= 4 * unit(expected, torch.float32)


# torch's own batch_norm compares sizes in Python
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torchscript_is_deprecated
@every_operation
def test_jit_trace(device, launches, operation):
    x, other = torch.randn(2, *shape_of(operation), device=device)

    def traced(f):
        graph = torch.jit.trace(f, x, check_trace=False)
        torch.manual_seed(4)
        return str(graph.inlined_graph).count("aten::"), graph(other)

    (their_nodes, theirs), (our_nodes, ours) = both(operation, traced)
    assert our_nodes == their_nodes or operation in JUDGES_P
    assert torch.equal(ours, theirs)
    assert launches == []


@every_kind
def test_models_that_become_graphs(device, kind):
    layer, x = torch_layer(kind, device)
    plain = torch.nn.Sequential(layer).eval()
    replaced = copy.deepcopy(plain)
    normreg.replace(replaced)
    y, expected = torch.fx.symbolic_trace(replaced)(x), torch.fx.symbolic_trace(plain)(x)
    # both are rounded, and torch's reciprocal of a root is approximate on a GPU
    assert error(y, expected.double()) <= 4 * unit(expected, torch.float32)


# Empty tensors.

EMPTY = {
    "no rows": ("layer_norm", (0, 4), dict(normalized_shape=(4,))),
    "no rows of two dimensions": ("layer_norm", (2, 0, 3, 4), dict(normalized_shape=(3, 4))),
    "no columns": ("layer_norm", (3, 0), dict(normalized_shape=(0,))),
    "no rows of rms_norm": ("rms_norm", (0, 4), dict(normalized_shape=(4,))),
    "no columns of rms_norm": ("rms_norm", (3, 0), dict(normalized_shape=(0,))),
    "no batch": ("batch_norm", (0, 4), {}),
    "no batch of images": ("batch_norm", (0, 4, 3, 3), {}),
    "no positions": ("batch_norm", (3, 4, 0), {}),
    "no channels": ("batch_norm", (3, 0, 2), {}),
    "no batch of groups": ("group_norm", (0, 4, 3), dict(num_groups=2)),
    "no channels of groups": ("group_norm", (3, 0, 2), dict(num_groups=2)),
    "no instances": ("instance_norm", (0, 4, 3), {}),
    "no positions of instances": ("instance_norm", (3, 4, 0), {}),
    "nothing": ("dropout", (0,), {}),
    "nothing of three dimensions": ("dropout", (3, 0, 2), {}),
    "no batch to drop channels of": ("dropout1d", (0, 4, 2), {}),
    "no channels to drop": ("dropout2d", (2, 0, 3, 3), {}),
    "no positions to drop": ("dropout3d", (4, 3, 0, 3), {}),
    "nothing to set to alpha": ("alpha_dropout", (0,), {}),
    "no channels to set to alpha": ("feature_alpha_dropout", (3, 0, 2), {}),
}


@every_operation
def test_no_samples(device, launches, operation):
    x = torch.ones(0, *shape_of(operation)[1:], device=device, requires_grad=True)
    row, results = DISPATCHED[operation], []
    for library in LIBRARIES.values():
        others = [
            torch.ones(s if s != shape_of(operation) else x.shape, device=device) for s in row.shapes[1:]
        ]
        y = outcome(row, library, x, *others)
        gradients = outcome(torch.autograd.grad, y, x, torch.ones_like(y)) if type(y) is torch.Tensor else ()
        results.append((y, *gradients))
    for theirs, ours in zip(*results, strict=True):
        assert_same_outcome(ours, theirs)
    assert launches == []


@pytest.mark.parametrize(("operation", "shape", "options"), EMPTY.values(), ids=EMPTY)
def test_empty_tensors(device, launches, operation, shape, options):
    affine_shape = options.get("normalized_shape", shape[1:2])
    results = []
    for library in LIBRARIES.values():
        x = torch.ones(shape, device=device, requires_grad=True)
        arguments, buffers = dict(options), {}
        if "norm" in operation:
            arguments |= {
                name: torch.ones(affine_shape, device=device, requires_grad=True)
                for name in ("weight", "bias")[: 1 if operation == "rms_norm" else 2]
            }
        if operation == "batch_norm":
            buffers = {
                name: torch.ones(affine_shape, device=device) for name in ("running_mean", "running_var")
            }
        y = outcome(
            getattr(library, operation),
            x,
            **arguments,
            **buffers,
            **({"training": True} if operation in ("batch_norm", "dropout") else {}),
        )
        leaves = [x, *(a for a in arguments.values() if isinstance(a, torch.Tensor))]
        gradients = ()
        if not isinstance(y, Exception):
            gradients = outcome(torch.autograd.grad, y, leaves, torch.ones_like(y))
        results.append((y, gradients, [*buffers.values()]))
    (theirs, their_gradients, their_buffers), (ours, our_gradients, our_buffers) = results
    assert_same_outcome(ours, theirs)
    if isinstance(their_gradients, Exception):
        assert_same_outcome(our_gradients, their_gradients)
        our_gradients = their_gradients = ()
    tensors = [*our_gradients, *our_buffers], [*their_gradients, *their_buffers]
    for our, their in zip(*tensors, strict=True):
        assert torch.equal(our, their)
        assert our.isfinite().all()
    assert launches == []


@pytest.mark.parametrize("momentum", [0.1, None], ids=["momentum", "cumulative"])
def test_empty_batch_leaves_a_layer_as_torch_does(device, momentum):
    x = torch.randn(0, 4, 3, device=device)
    states = []
    for library in (torch.nn, normreg):
        module = library.BatchNorm1d(4, momentum=momentum, device=device)
        y = module(x)
        states.append([y.detach(), *module.state_dict().values()])
    for our, their in zip(*states, strict=True):
        assert torch.equal(our, their)
        assert our.isfinite().all()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("which", ["running_mean", "running_var"])
def test_running_statistics_with_gaps_go_to_torch(device, launches, which, training):
    good = batch_norm_call(device)
    results = []
    for library in LIBRARIES.values():
        arguments = good | before_call(good)
        whole = torch.full((10,), 2.0, device=device)
        arguments[which] = whole[::2]
        results.append((outcome(library.batch_norm, **arguments, training=training), whole))
    (theirs, their_whole), (ours, our_whole) = results
    assert_same_outcome(ours, theirs)
    assert torch.equal(our_whole, their_whole)
    assert launches == []
    if device.type == "cpu":  # cuDNN refuses them, or updates a copy
        assert (our_whole[1::2] == 2).all()
        assert (our_whole[::2] != 2).all() == training


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "inplace"])
@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False), (1.0, False), (0, True)])
def test_dropout_that_does_nothing_returns_its_input(device, launches, p, training, inplace):
    x = torch.randn(3, 4, device=device, requires_grad=True)
    generator = torch.cuda if device.type == "cuda" else torch
    state = generator.get_rng_state()
    assert normreg.functional.dropout(x, p, training, inplace) is x
    module = normreg.Dropout(p, inplace).train(training)
    assert module(x) is x
    assert x._version == 0
    assert torch.equal(generator.get_rng_state(), state)
    assert launches == []


def test_without_a_gpu_and_the_interpreter_all_is_torch():
    printed = json.loads(programs.compiling("without_kernels", CUDA_VISIBLE_DEVICES="").stdout)
    theirs, ours = printed.pop("graphs")
    assert ours == theirs
    assert all(len(targets) >= 3 for targets in ours)
    # output, 11 parameters with gradients and in the state, 6 buffers, output in evaluation; two steps
    assert printed == {
        "changed": 13,
        "compared": 2 * (1 + 11 + 11 + 6 + 1),
        "equal": 2 * (1 + 11 + 11 + 6 + 1),
        "reasons": ["there is no kernel for cpu tensors"] * 6,
    }
