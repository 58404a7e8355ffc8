"""What torch has no function for computes its documented equivalent, whatever the call."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree
from drawn import Call, dtypes, parameters, recipes, shapes, st
from formulas import ACTIVATIONS
from hypothesis import given

import normreg
from normreg import functional

EPS = st.sampled_from([1e-5, 1e-3, 1.0])
P = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])  # which 16 bits hold exactly


def channels_last(tensor):
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


@st.composite
def calls_of_layer_norm_channels(draw):
    shape, dtype = draw(shapes(2)), draw(dtypes)
    tensors = {"input": draw(recipes(shape, dtype))} | draw(parameters(["weight", "bias"], shape[1:2], dtype))
    return Call(tensors, dict(eps=draw(EPS))), draw(recipes(shape, dtype))


@given(calls_of_layer_norm_channels())
def test_layer_norm_channels(device, drawn_call):
    def theirs(input, weight, bias, eps):
        y = F.layer_norm(input.movedim(1, -1), input.shape[1:2], weight, bias, eps).movedim(-1, 1)
        return channels_last(y) if input.movedim(1, -1).is_contiguous() else y.contiguous()

    assert_agree(functional.layer_norm_channels, theirs, *drawn_call, device)


@st.composite
def calls_of_batch_norm_act(draw):
    shape, dtype, training = draw(shapes(2)), draw(dtypes), draw(st.booleans())
    tensors = {"input": as_drawn(draw(recipes(shape, dtype)))}
    tensors |= draw(parameters(["weight", "bias"], shape[1:2], dtype))
    tensors["residual"] = draw(st.one_of(st.none(), recipes(shape, dtype)))
    names = ["running_mean", "running_var"]
    buffers = dict.fromkeys(names)
    if draw(st.booleans()) or not training:
        of_one_dtype = next((t.dtype for t in (tensors["weight"], tensors["bias"]) if t), dtype)
        buffers = {name: as_buffer(draw(recipes(shape[1:2], of_one_dtype)), name) for name in names}
    options = dict(training=training, eps=draw(EPS), act=draw(st.sampled_from([*ACTIVATIONS])), momentum=0.1)
    return Call(tensors, options | dict(negative_slope=0.3), buffers), draw(recipes(shape, dtype))


def as_drawn(recipe):
    """Without rows that are constant, which are next to the kink of an activation."""
    return dataclasses.replace(recipe, expanded=(), mean=0.0, scale=1.0)


def as_buffer(recipe, name):
    return dataclasses.replace(as_drawn(recipe), requires_grad=False, positive=name.endswith("var"))


@given(calls_of_batch_norm_act())
def test_batch_norm_act(device, drawn_call):
    def theirs(input, residual, act, negative_slope, **options):
        y = F.batch_norm(input, **options)
        return ACTIVATIONS[act](y if residual is None else y + residual)

    assert_agree(functional.batch_norm_act, theirs, *drawn_call, device)


@st.composite
def calls_of_bias_act_dropout(draw):
    shape, dtype = draw(shapes(1)), draw(dtypes)
    tensors = {"input": as_drawn(draw(recipes(shape, dtype)))} | draw(parameters(["bias"], shape[-1:], dtype))
    options = dict(act=draw(st.sampled_from([*ACTIVATIONS])), p=draw(P), training=draw(st.booleans()))
    return Call(tensors, options | dict(negative_slope=0.3)), draw(recipes(shape, dtype))


def seeded(function, device):
    """The function with one mask at every call."""
    return lambda **options: function(**options, generator=torch.Generator(device).manual_seed(4))


def mask_of(function, call, device):
    tensors, _ = call.made(device)
    first, *rest = tensors
    given = {name: tensors[name] for name in rest} | call.options
    generator = torch.Generator(device).manual_seed(4)
    return normreg.dropout_mask(function, tensors[first], **given, generator=generator)


def dropped(x, keep, p, training):
    if not training or p == 0:
        return x
    return torch.zeros_like(x) * x if p == 1 else torch.where(keep, x / (1 - p), 0)


@given(calls_of_bias_act_dropout())
def test_bias_act_dropout(device, drawn_call):
    keep = mask_of(functional.bias_act_dropout, drawn_call[0], device)

    def theirs(input, bias, act, negative_slope, p, training):
        z = input if bias is None else (input + bias).to(input.dtype)
        return dropped(ACTIVATIONS[act](z), keep, p, training).contiguous()

    assert_agree(seeded(functional.bias_act_dropout, device), theirs, *drawn_call, device)


@st.composite
def branches(draw, first, p, rows_in, more=()):
    """(call of a sum, recipe of dy); rows_in: how many trailing dimensions a layer scale multiplies."""
    shape, dtype = draw(shapes(2)), draw(dtypes)
    dims = draw(st.integers(1, len(shape) - 1)) if rows_in is None else rows_in
    row, leading = shape[len(shape) - dims :], shape[: len(shape) - dims]
    wider = draw(st.sampled_from([dtype, torch.promote_types(dtype, torch.float32)]))
    tensors = {first: draw(recipes(shape, dtype)), "residual": draw(recipes(shape, wider))}
    tensors |= draw(parameters(["layer_scale"], row, dtype))
    options = {p: draw(P), "training": draw(st.booleans())}
    if first == "input":
        given = draw(parameters(["row_scale"], leading[: draw(st.integers(1, len(leading)))], dtype))
        tensors |= {
            name: recipe and dataclasses.replace(recipe, requires_grad=False)
            for name, recipe in given.items()
        }
    if more:  # a norm of sums that are not alike but for what 16 bits round away
        tensors = {name: recipe and as_drawn(recipe) for name, recipe in tensors.items()}
        tensors |= draw(parameters(more, row, dtype))
        options |= dict(eps=draw(EPS), normalized_shape=row)
    return Call(tensors, options), draw(recipes(shape, wider))


def branch(x, keep, p, training, layer_scale, row_scale=None):
    z = dropped(x, keep, p, training)
    if row_scale is not None:
        z = z * row_scale.view(*row_scale.shape, *[1] * (x.dim() - row_scale.dim())).to(x.dtype)
    return z if layer_scale is None else z * layer_scale.to(x.dtype)


@given(branches("input", "p", 1))
def test_dropout_add(device, drawn_call):
    keep = mask_of(functional.dropout_add, drawn_call[0], device)

    def theirs(input, residual, **options):
        return branch(input, keep, **options) + residual

    assert_agree(seeded(functional.dropout_add, device), theirs, *drawn_call, device, same_strides=False)


@given(branches("x", "drop_prob", 1))
def test_drop_path_add(device, drawn_call):
    keep = mask_of(functional.drop_path_add, drawn_call[0], device)

    def theirs(x, residual, drop_prob, **options):
        return branch(x, keep, drop_prob, **options) + residual

    assert_agree(seeded(functional.drop_path_add, device), theirs, *drawn_call, device, same_strides=False)


def norm_of_a_sum(norm, keep):
    def theirs(input, residual, normalized_shape, eps, p, training, layer_scale, row_scale, **given):
        z = branch(input, keep, p, training, layer_scale, row_scale) + residual
        given = {name: t if t is None else t.to(z.dtype) for name, t in given.items()}
        return norm(z, normalized_shape, **given, eps=eps).to(input.dtype)

    return theirs


NORMS = {
    "dropout_add_layer_norm": (F.layer_norm, ["weight", "bias"]),
    "dropout_add_rms_norm": (F.rms_norm, ["weight"]),
}


@pytest.mark.parametrize("name", NORMS)
@given(data=st.data())
def test_dropout_add_norms(device, name, data):
    norm, names = NORMS[name]
    call, dy = data.draw(branches("input", "p", None, names))
    function = getattr(functional, name)
    theirs = norm_of_a_sum(norm, mask_of(function, call, device))
    assert_agree(seeded(function, device), theirs, call, dy, device, same_strides=False, luck=1.5)
