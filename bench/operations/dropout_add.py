"""Dropout, or stochastic depth, and the sum with a residual: blocks whose norm lives elsewhere."""

import copy

import torch
import torch.nn.functional as F

import normreg

from . import dropout
from .case import DTYPES, Case, Operation, error_against_float64, is_mask_of_dropout

NAME = "dropout_add"
P = 0.1


class Sum(torch.nn.Module):
    """What torch has to offer."""

    def __init__(self, residual, layer_scale, by_sample):
        super().__init__()
        self.residual = torch.nn.Parameter(residual)
        self.layer_scale = None if layer_scale is None else torch.nn.Parameter(layer_scale)
        self.by_sample = by_sample

    def branch(self, x):
        if not self.by_sample:
            return F.dropout(x, P, self.training)
        keep = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - P)
        return x * keep.div_(1 - P)

    def forward(self, x):
        branch = self.branch(x)
        return self.residual + (branch if self.layer_scale is None else branch * self.layer_scale)


class FusedSum(Sum):
    def forward(self, x):
        function = normreg.functional.drop_path_add if self.by_sample else normreg.functional.dropout_add
        return function(x, self.residual, P, self.training, layer_scale=self.layer_scale)


def fuse(layer):
    """Makes a Sum normreg's."""
    layer.__class__ = FusedSum
    return layer


class MaskedSum(Sum):
    def branch(self, x):
        return x * self.scale


def layer(library, case, device=None, dtype=None):
    """Of "dropout+add" or "drop path+add", behind "scaled" where there is a layer scale."""
    scale = None
    if case.layer.startswith("scaled"):
        scale = torch.rand(case.shape[-1], device=device, dtype=dtype) + 0.5
    residual = case.like_input(torch.randn, device, dtype)
    made = Sum(residual, scale, "path" in case.layer).train(case.training)
    return fuse(made) if library is normreg else made


def error(reference, layer, x, dy, y, gradients):
    """The largest relative error under the layer's own mask, which dx shows, or inf where that is none."""
    keep = gradients[0] != 0
    decisions = x.shape[0] if reference.by_sample else x.numel()
    if not is_mask_of_dropout(keep, P, decisions):
        return float("inf")
    reference = copy.deepcopy(reference)
    reference.__class__, reference.scale = MaskedSum, keep / (1 - P)
    return error_against_float64(reference, layer, x, dy, y, gradients)


OPERATION = Operation(
    name=NAME,
    layer=layer,
    # x, residual, z; dz, dx, where the residual's gradient is dz itself; both
    passes={"forward": 3, "backward": 2, "forward+backward": 5},
    masked_error=error,
    ledger=(Case(NAME, (640, 1024), layer="dropout+add"), Case(NAME, (4, 40, 64, 64), layer="drop path+add")),
    static=tuple(
        Case(NAME, shape, dtype, channels_last, layer=kind)
        for dtype in DTYPES.values()
        for shape, channels_last, kind in (
            ((4096, 1024), False, "dropout+add"),
            ((64, 197, 768), False, "scaled drop path+add"),
            ((4096, 1000), False, "scaled dropout+add"),
            ((32, 96, 56, 56), True, "drop path+add"),
        )
    ),
    instructions=(
        Case(NAME, (1024, 1024), layer="dropout+add"),
        Case(NAME, (7, 197, 768), layer="scaled drop path+add"),
        Case(NAME, (1056, 1000), layer="scaled dropout+add"),
        Case(NAME, (4, 96, 56, 56), channels_last=True, layer="drop path+add"),
    ),
    host=(Case(NAME, (8, 768), layer="dropout+add"),),
    speed=tuple(
        Case(NAME, shape, layer=kind, origin=origin)
        for origin, shape in (*dropout.SHAPES[:3], ("ViT-B", (128, 197, 768)))
        for kind in ("dropout+add", "scaled drop path+add")
    ),
)
