"""Inputs of operations that add a residual branch with dropout, and their formulas under the same mask."""

import pytest
import torch
import torch.nn.functional as F

from normreg import dropout_mask, functional
from normreg.kernels import tiling
from normreg.kernels.dropout import layer_constants, scaled

NORMS = {
    "layer_norm": (functional.dropout_add_layer_norm, F.layer_norm),
    "rms_norm": (functional.dropout_add_rms_norm, F.rms_norm),
}
every_norm = pytest.mark.parametrize("norm", NORMS)


def generator(device):
    return torch.Generator(device).manual_seed(4)


def made(device, dtype, *shape, requires_grad=True):
    return torch.randn(shape, device=device, dtype=dtype).requires_grad_(requires_grad)


def parameters(norm, cols, device, dtype):
    count = 2 if norm == "layer_norm" else 1
    return [made(device, dtype, cols) for _ in range(count)]


def factors(function, x, *arguments, scaled_for=0.3, bits=None, **options):
    """1 / keep where an element is kept, else 0."""
    keep = dropout_mask(function, x, *arguments, generator=generator(x.device), **options)
    _, scale, *_ = layer_constants(
        scaled_for, bits or tiling.elements.dropout_bits(x.dtype, scaled_for), scaled, linear=True
    )
    return keep, scale
