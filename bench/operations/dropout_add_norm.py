"""Dropout, sum with a residual and norm: the seams of transformer blocks, post-norm and pre-norm."""

import copy
from dataclasses import dataclass

import torch

import normreg

from .case import DTYPES, LEDGER_ELEMENTS, Case, Operation, error_against_float64, is_mask_of_dropout

NAME = "dropout_add_norm"
P = 0.1


class Both(torch.autograd.Function):
    """y, of which the gradient is z's as well, so that both are wanted and nothing is moved for it."""

    @staticmethod
    def forward(ctx, y, z):
        return y.view_as(y)

    @staticmethod
    def backward(ctx, dy):
        return dy, dy


class Seam(torch.nn.Module):
    """What torch has to offer: y, where the block is pre-norm with the gradient of z."""

    def __init__(self, norm, residual, prenorm, p):
        super().__init__()
        self.norm, self.residual, self.prenorm = norm, torch.nn.Parameter(residual), prenorm
        self.p, self.dropout = p, torch.nn.Dropout(p)

    def forward(self, x):
        z = self.residual + self.dropout(x)
        y = self.norm(z)
        return Both.apply(y, z) if self.prenorm else y


class FusedSeam(Seam):
    def forward(self, x):
        norm = self.norm
        options = dict(p=self.p, training=self.training, eps=norm.eps, prenorm=self.prenorm)
        parameters = norm.parameters()
        result = self.fused(x, self.residual, norm.normalized_shape, *parameters, **options)
        return Both.apply(*result) if self.prenorm else result


FUSED = {
    torch.nn.LayerNorm: normreg.functional.dropout_add_layer_norm,
    torch.nn.RMSNorm: normreg.functional.dropout_add_rms_norm,
}


def fuse(layer):
    """Makes a Seam normreg's."""
    layer.__class__, layer.fused = FusedSeam, FUSED[type(layer.norm)]
    return layer


def drops(case):
    return "dropout" in case.layer


def layer(library, case, device=None, dtype=None):
    """Of "dropout+add+LayerNorm", "add+LayerNorm" or RMSNorm, behind "prenorm" where the sum is used, too."""
    *prenorm, parts = case.layer.split()
    residual = case.like_input(torch.randn, device, dtype)
    norm = getattr(torch.nn, parts.split("+")[-1])(case.shape[-1], device=device, dtype=dtype)
    made = Seam(norm, residual, bool(prenorm), P * drops(case)).train(case.training)
    return fuse(made) if library is normreg else made


def error(reference, layer, x, dy, y, gradients):
    """The largest relative error under the layer's own mask, which dx shows, or inf where that is none."""
    if reference.p == 0:
        return error_against_float64(reference, layer, x, dy, y, gradients)
    keep = gradients[0] != 0
    if not is_mask_of_dropout(keep, P, x.numel()):
        return float("inf")
    reference = copy.deepcopy(reference)
    reference.dropout = Masked(keep.double() / (1 - P))
    return error_against_float64(reference, layer, x, dy, y, gradients)


class Masked(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return x * self.scale


@dataclass(frozen=True)
class Sum(Operation):
    """In which a pre-norm block has the gradient of z to read, too, and a mere sum one gradient to write."""

    def least_bytes(self, case, direction):
        passes = self.passes[direction]
        if "backward" in direction:
            passes += case.layer.startswith("prenorm") - (not drops(case))
        return passes * case.bytes


def both_kinds(shapes, dtype=torch.bfloat16, origin=""):
    for shape in shapes:
        for kind in ("prenorm dropout+add+LayerNorm", "dropout+add+LayerNorm", "prenorm dropout+add+RMSNorm"):
            yield Case(NAME, shape, dtype, layer=kind, origin=origin)


OPERATION = Sum(
    name=NAME,
    layer=layer,
    # x, residual, z, y; dy, z, dx, dresidual; both; x, residual, y
    passes={"forward": 4, "backward": 4, "forward+backward": 8, "evaluation": 3},
    masked_error=error,
    ledger=(
        Case(NAME, (LEDGER_ELEMENTS // 4096, 4096), layer="prenorm dropout+add+LayerNorm"),
        Case(NAME, (LEDGER_ELEMENTS // 1024, 1024), layer="dropout+add+RMSNorm"),
        Case(NAME, (LEDGER_ELEMENTS // 4096, 4096), layer="prenorm add+RMSNorm"),
        Case(NAME, (LEDGER_ELEMENTS // 65536, 65536), layer="prenorm dropout+add+LayerNorm"),
    ),
    static=tuple(
        Case(NAME, (4096, cols), dtype, layer=kind)
        for dtype in DTYPES.values()
        for kind, widths in (
            ("prenorm dropout+add+LayerNorm", (4096, 64, 8192, 16384, 65536)),
            ("dropout+add+LayerNorm", (1024,)),
            ("prenorm dropout+add+RMSNorm", (4096,)),
        )
        for cols in widths
    ),
    instructions=(
        Case(NAME, (264, 4096), layer="prenorm dropout+add+LayerNorm"),
        Case(NAME, (264, 4096), layer="prenorm dropout+add+RMSNorm"),
        Case(NAME, (264, 4096), layer="prenorm add+RMSNorm"),
        Case(NAME, (1024, 1024), layer="dropout+add+LayerNorm"),
        Case(NAME, (16384, 64), layer="prenorm dropout+add+LayerNorm"),
        Case(NAME, (66, 16384), layer="prenorm dropout+add+LayerNorm"),
        Case(NAME, (16, 65536), layer="prenorm dropout+add+LayerNorm"),
    ),
    host=(Case(NAME, (8, 768), layer="prenorm dropout+add+LayerNorm"),),
    speed=(
        *both_kinds(((16384, 1024), (16384, 4096), (8192, 8192)), origin="language"),
        *both_kinds(((32768, 768), (8192, 12288), (4096, 16384), (1024, 65536)), origin="language"),
        *both_kinds(((16384, 4096),), torch.float32, "float32"),
    ),
)
