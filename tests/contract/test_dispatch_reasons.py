"""Which calls take the kernel, which go to torch, and the reason that is given."""

import json

import programs
import pytest
import torch
import torch.nn.functional as F
from operations import LIBRARIES
from outcomes import (
    NO_REASON,
    Tagged,
    assert_same_outcome,
    assert_unchanged,
    batch_norm_call,
    before_call,
    nested_is_a_prototype,
    outcome,
    reasons,
    tensors_of,
)
from support.reference import DTYPES, copies
from torch._subclasses.fake_tensor import FakeTensorMode

import normreg
from normreg.functional import dispatch

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


def test_group_norms_take_channels_last(device, launches):
    """The result of group_norm has the format of torch's, that of group_norm_act the input's."""
    x = torch.randn(2, 4, 3, 5, device=device).contiguous(memory_format=torch.channels_last)
    y, expected = (library.group_norm(x, 2) for library in (normreg.functional, F))
    assert y.stride() == expected.stride()
    assert normreg.functional.group_norm_act(x, 2).stride() == x.stride()
    assert launches == ["group_norm_forward_kernel"] * 2
    for t in (x, x.contiguous()):
        assert dispatch.group_norm(t, 2, None, None, 1e-5) is None
        assert dispatch.instance_norm(t, None, None, None, None, True, 0.1, 1e-5) is None
    images = normreg.functional.instance_norm(x)
    assert images.stride() == F.instance_norm(x).stride()


def fake_images(kind, dtype=torch.float32):
    return torch.empty_strided((2, 4, 3, 5), (60, 1, 20, 4), dtype=dtype, device=kind)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_group_norm_keeps_channels_last_where_this_torch_does(kind):
    """By what torch says of tensors without memory, which need no GPU."""
    with FakeTensorMode():
        x, weight = fake_images(kind), torch.empty_strided((4,), (1,), device=kind)
        kept = F.group_norm(x, 2, weight, weight).stride() == x.stride()
        assert dispatch.group_norm_keeps_channels_last(x, (weight, weight)) == kept


@pytest.mark.parametrize("kept", [True, False])
def test_group_norm_takes_a_gpus_parameters_of_another_dtype(kept, monkeypatch):
    """torch does not, except where autocast converts both, so there is no result to be like."""
    monkeypatch.setattr(dispatch, "GPU_GROUP_NORM_KEEPS_CHANNELS_LAST", kept)
    with FakeTensorMode():
        x, weight = fake_images("cuda", torch.half), torch.empty_strided((4,), (1,), device="cuda")
        assert dispatch.group_norm_keeps_channels_last(x, (None, None)) == kept
        assert dispatch.group_norm_keeps_channels_last(x, (weight.half(), None)) == kept
        assert not dispatch.group_norm_keeps_channels_last(x, (weight, weight))
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
        assert dispatch.group_norm_keeps_channels_last(x, (weight, weight)) == kept


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
    ]
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
