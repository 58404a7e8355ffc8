"""Norms with a result in float8, without a gradient; `test_float8_compiled.py` counts what they move."""

import torch
import torch.nn.functional as F

from normreg import functional

from .operation import Operation, Smoke
from .problem import Problem

EPS = 1e-5


def in_float8(x, weight):
    """Ones where y8 is a number next to y / scale, the scale, and the inputs, so that there is a gradient."""
    shape = x.shape[-1:]
    with torch.no_grad():
        y8, scale = functional.rms_norm(x, shape, weight, EPS, out_dtype=torch.float8_e4m3fn)
        y = F.rms_norm(x.double(), shape, weight.double(), EPS) / scale
        half_a_unit = 2.0 ** (y.abs().clamp_min(2.0**-6).log2().floor() - 4)
        is_near = (y8.double() - y).abs() <= half_a_unit * (1 + 2**-10)
    return is_near.to(x.dtype), scale, x * 1, weight * 1


def formula(x, weight):
    y = F.rms_norm(x.double(), x.shape[-1:], weight.double(), EPS).detach()
    return torch.ones_like(x), (y.abs().amax(-1, True) / 448).float(), x * 1, weight * 1


OPERATION = Operation(
    name="float8",
    kernels="layer_norm_float8",
    functions={},
    problem=lambda make, *shape: Problem([make(*shape), make(shape[1])], in_float8, formula),
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "33x64"),  # several rows a program
        Smoke("bf16 fp32", "5x4096"),  # several tiles
    ),
)
