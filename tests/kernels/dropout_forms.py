"""Forms of dropout that drop groups of elements, and the mask and result that are expected of a call."""

import math

import pytest
import torch
from operations import FUNCTIONS, Dropout
from support.reference import ROUNDED

from normreg.kernels import dropout as kernels
from normreg.kernels import dtypes
from normreg.ops import seed

P = 0.25  # a multiple of 2^-16, so that nothing is rounded

FORMS = {name: row for name, row in FUNCTIONS.items() if isinstance(row, Dropout)}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
INPLACE = {name: form for name, form in FORMS.items() if form.name != "drop_path"}


def decisions(form, x):
    """The shape of the mask."""
    if form.leading is None:
        return x.shape
    return (*x.shape[: form.leading], *(1,) * (x.dim() - form.leading))


def generator_of(device, state=7):
    return torch.Generator(device).manual_seed(state)


def mask_of(form, x, p=P, state=7):
    """The elements that a generator in this state keeps; test_dropout_mask.py tests the numbers."""
    shape = decisions(form, x)
    # groups take 32 bits in every dtype
    dtype = x.dtype if math.prod(shape) == x.numel() else torch.float32
    seed_ = seed.draw(x.device, generator_of(x.device, state))
    ones = torch.ones(math.prod(shape), dtype=dtype, device=x.device)
    return (kernels.dropout(ones, p, seed_) != 0).view(shape).expand(x.shape)


def expected(form, x, kept, p=P, linear=False):
    """y by the formula, in float64."""
    scale, shift, dropped = 1 / (1 - p), 0.0, 0.0
    if form.alpha:
        alpha = -1.0507009873554805 * 1.6732632423543772
        scale = ((1 - p) * (1 + p * alpha**2)) ** -0.5
        shift, dropped = -scale * alpha * p, scale * alpha * (1 - p)
    elif not form.scaled:
        scale = 1.0
    if linear:
        shift = dropped = 0.0
    return torch.where(kept, x.double() * scale + shift, dropped)


def assert_result(form, result, x, kept, linear=False):
    limits = torch.finfo(x.dtype)
    tolerance = dict(rtol=ROUNDED[x.dtype], atol=limits.eps * limits.smallest_normal)
    if form.alpha and not linear:
        # the sum may cancel: its terms are rounded at their own size, of at most 4
        tolerance["atol"] = 4 * torch.finfo(dtypes.compute_dtype(x.dtype)).eps
    torch.testing.assert_close(result.double(), expected(form, x, kept, linear=linear), **tolerance)


def layouts(form, x):
    """(name, tensor of the same values) in every layout."""
    yield "contiguous", x.clone()
    yield "transposed", x.transpose(0, -1).contiguous().transpose(0, -1)
    yield "sliced", torch.stack([x, x], -1)[..., 0]
    yield "offset", torch.stack([x, x])[1]
    for dims, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.dim() == dims:
            yield "channels_last", x.contiguous(memory_format=memory_format)
            yield (
                "sliced channels_last",
                torch.cat([x, x], 1).contiguous(memory_format=memory_format)[:, : x.shape[1]],
            )
            yield (
                "channels_last across",
                x.transpose(2, 3).contiguous(memory_format=memory_format).transpose(2, 3),
            )


def rng_state(device):
    return (torch.cuda if device.type == "cuda" else torch).get_rng_state()
