"""layer_norm, rms_norm, group_norm, instance_norm and batch_norm are torch's, whatever the call."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree
from drawn import Call, dtypes, oddities, parameters, recipes, shapes, st
from hypothesis import given

from normreg import functional

pytestmark = [
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and:UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of nan and inf, in the interpreter
]
USUAL_EPS = st.sampled_from([1e-5, 1e-5, 1e-3, 1.0, 3])
ODD_EPS = st.sampled_from([0.0, -0.5, float("nan"), float("inf"), 1e-300, "1e-5", None])
USUAL_MOMENTA, ODD_MOMENTA = (
    st.sampled_from([0.1, 0.1, 0.0, 1.0, 2, -0.5]),
    st.sampled_from([float("nan"), None, "0.1"]),
)


def well_conditioned(recipe, eps):
    """The recipe without what only eps keeps from being 0 / 0: rows that are constant but for rounding."""
    if isinstance(eps, (int, float)) and not abs(eps) > 1e-6:
        return dataclasses.replace(recipe, mean=0.0, scale=1.0, expanded=())
    return recipe


@st.composite
def calls_over_rows(draw, bias):
    odd = draw(oddities("shape", "dtype", "parameter", "eps", "normalized_shape"))
    shape = draw(shapes(odd=odd))
    dims = draw(st.integers(min(1, len(shape)), len(shape)))
    normalized = shape[len(shape) - dims :]
    dtype, eps = draw(dtypes), draw(ODD_EPS if "eps" in odd else USUAL_EPS)
    tensors = {"input": well_conditioned(draw(recipes(shape, dtype)), eps)}
    tensors |= draw(parameters(["weight", "bias"][: 1 + bias], normalized, dtype, odd))
    kinds = [normalized, list(normalized), torch.Size(normalized)]
    if "normalized_shape" in odd:
        kinds = [(*normalized, 1), normalized[1:], (), 3, tuple(map(float, normalized)), None]
    options = dict(normalized_shape=draw(st.sampled_from(kinds)), eps=eps)
    return Call(tensors, options), draw(recipes(shape, dtype))


@given(calls_over_rows(bias=True))
def test_layer_norm(device, drawn_call):
    assert_agree(functional.layer_norm, F.layer_norm, *drawn_call, device)


@given(calls_over_rows(bias=False))
def test_rms_norm(device, drawn_call):
    call, dy = drawn_call
    computed_in = torch.float32 if call.tensors["input"].dtype.itemsize == 2 else call.tensors["input"].dtype

    def theirs(input, *arguments, eps, **options):
        if eps is None and input.dtype == torch.float64:  # the reference, too, has the call's own eps
            eps = torch.finfo(computed_in).eps
        return F.rms_norm(input, *arguments, eps=eps, **options)

    assert_agree(functional.rms_norm, theirs, call, dy, device)


@st.composite
def calls_over_channels(draw, flag=None):
    """Calls of group_norm, or of what has running statistics and a flag that says whether they are used."""
    odd = draw(oddities("shape", "dtype", "parameter", "eps", "momentum", "flag"))
    shape = draw(shapes(2, odd=odd))
    channels = shape[1:2]
    dtype, eps = draw(dtypes), draw(ODD_EPS if "eps" in odd else USUAL_EPS)
    tensors = {"input": well_conditioned(draw(recipes(shape, dtype)), eps)}
    tensors |= draw(parameters(["weight", "bias"], channels, dtype, odd))
    if flag is None:
        # of an input that wants none, torch's backward on a CPU may read a gradient that is not there
        tensors["input"] = dataclasses.replace(tensors["input"], requires_grad=True)
        usual = [n for n in range(1, 18) if channels and channels[0] % n == 0] or [1]
        options = dict(num_groups=draw(st.sampled_from([0, -1, 5, 2.0, None] if "flag" in odd else usual)))
        return Call(tensors, options | dict(eps=eps)), draw(recipes(shape, dtype))
    used = draw(st.sampled_from([0, 1, None] if "flag" in odd else [True, True, False]))
    options = {flag: used, "eps": eps, "momentum": draw(ODD_MOMENTA if "momentum" in odd else USUAL_MOMENTA)}
    names = ["running_mean", "running_var"]
    given = used is False or draw(st.booleans())
    buffers = (
        draw(parameters(names, channels, dtype, odd, may_be_none="flag" in odd))
        if given
        else dict.fromkeys(names)
    )
    buffers = {name: as_buffer(name, recipe) for name, recipe in buffers.items()}
    return Call(tensors, options, buffers), draw(recipes(shape, dtype))


def as_buffer(name, recipe):
    """The recipe of a running statistic, mostly contiguous, and large enough beside eps."""
    if recipe is None:
        return None
    kept = dict(expanded=(), requires_grad=False, positive=name.endswith("var"), mean=0.0, scale=1.0)
    return dataclasses.replace(recipe, **kept)


@given(calls_over_channels())
def test_group_norm(device, drawn_call):
    assert_agree(functional.group_norm, F.group_norm, *drawn_call, device)


@given(calls_over_channels("use_input_stats"))
def test_instance_norm(device, drawn_call):
    assert_agree(functional.instance_norm, F.instance_norm, *drawn_call, device)


@given(calls_over_channels("training"))
def test_batch_norm(device, drawn_call):
    assert_agree(functional.batch_norm, F.batch_norm, *drawn_call, device)
