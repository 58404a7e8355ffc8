"""Inputs of norms with a scale and shift of each sample or row, and the functions that take them."""

import pytest
import torch
from branches import made, parameters
from support.reference import DTYPES

from bench.operations import OURS, TORCH

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
NORMS = ("layer_norm", "rms_norm")
every_norm = pytest.mark.parametrize("norm", NORMS)
# each of scale, shift and gate: for a sample, for a row, for all, or absent
KINDS = {
    "samples": ("sample", "sample", "sample"),
    "rows": ("row", "row", "row"),
    "all": ("all", "all", "all"),
    "samples without a shift": ("sample", None, "row"),
    "rows with a shift of samples": ("row", "sample", "all"),
    "samples with a shift of rows": ("sample", "row", "sample"),
    "all with a shift of samples": ("all", "sample", None),
}
every_kind = pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)


def modulation(kind, device, dtype, samples, *leading):
    """A leaf of a few units around 0; leading: the dimensions of x between samples and columns, and these."""
    *tokens, cols = leading
    shapes = {"sample": (samples, cols), "row": (samples, *tokens, cols), "all": (cols,), None: None}
    return None if kind is None else made(device, dtype, *shapes[kind])


def tensors(norm, kinds, device, dtype, *shape, affine=True, sums=True):
    """x, residual, scale, shift, gate, weight, bias; None where absent."""
    scale, shift, gate = (modulation(kind, device, dtype, *shape) for kind in kinds)
    residual = made(device, dtype, *shape) if sums else None
    own = parameters(norm, shape[-1], device, dtype) if affine else []
    return [made(device, dtype, *shape), residual, scale, shift, gate if sums else None, *own]


def both(norm, prenorm=True, **options):
    """The fused function and torch's operators, of what `tensors` returns, with z of y and z at once."""

    def of(library):
        function = getattr(library, f"ada_{norm}")

        def call(x, residual, scale, shift, gate, *own):
            given = dict(residual=residual, gate=gate, prenorm=prenorm, **options)
            result = function(x, scale, shift, *own, **given)
            return torch.cat(result) if prenorm else result

        return call

    return of(OURS), of(TORCH)
