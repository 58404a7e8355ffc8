"""Norms with a scale and shift of each sample or row, behind gated sums: seams of diffusion transformers."""

import torch
import torch.nn.functional as F

from normreg import functional

from . import layer_norm
from .calls import as_they_are
from .case import each, in_float_dtypes
from .composed import Both, Modulated
from .operation import Function, Layer, Measured, Operation, Smoke

SUM = "gate+add+adaLN"
KINDS = "adaLN {}", SUM + " {}"
# DiT-XL/2, SD3, Flux, Wan 14B
TRANSFORMERS = "2x4096x1152, 2x1024x1536, 1x4608x3072, 1x32760x5120"


def beside_rows(x, m):
    """A vector for each sample as it broadcasts with x."""
    if m is None or m.dim() in (1, x.dim()):
        return m
    return m.reshape(len(m), *[1] * (x.dim() - 2), -1)


def formula(norm):
    def function(x, scale, shift=None, *parameters, eps=1e-6, residual=None, gate=None, prenorm=False):
        parameters = [*parameters, None, None][: 2 if norm is F.layer_norm else 1]
        scale, shift, gate = (beside_rows(x, m) for m in (scale, shift, gate))
        z = x
        if residual is not None:
            z = residual + (x if gate is None else gate * x)
        y = norm(z, x.shape[-1:], *parameters, eps) * (1 + scale)
        y = y if shift is None else y + shift
        return (y, z) if prenorm else y

    return function


FORMULAS = {"ada_layer_norm": formula(F.layer_norm), "ada_rms_norm": formula(F.rms_norm)}


def both(f, x, residual, scale, *others, gated=True, **options):
    """y + z * 2, so that one incoming gradient reaches both; gated: the last of the others is the gate."""
    gate = others[-1] if gated else None
    options |= dict(residual=residual, gate=gate, prenorm=True)
    y, z = f(x, scale, *others[: len(others) - gated], **options)
    return y + z * 2


def of_a_sum(f, *inputs, **options):
    return both(f, *inputs, gated=False, **options)


class Seam(torch.nn.Module):
    """What torch has to offer: y, behind a gated sum with the gradient of z."""

    def __init__(self, name, like, residual, modulation):
        super().__init__()
        self.name, self.function = name, FORMULAS[name]
        self.residual = None if residual is None else torch.nn.Parameter(residual)
        parameters = torch.nn.ParameterDict(modulation)
        self.scale, self.shift = parameters["scale"], parameters["shift"]
        self.gate = None if residual is None else parameters["gate"]

    def forward(self, x):
        given = dict(residual=self.residual, gate=self.gate, prenorm=self.residual is not None)
        result = self.function(x, self.scale, self.shift, **given)
        return result if self.residual is None else Both.apply(*result)

    def fuse(self):
        self.function = getattr(functional, self.name)
        return self


def adds(case):
    return case.layer.startswith(SUM)


def of_rows(case):
    return case.layer.endswith("of rows")


def torch_layer(case, device=None, dtype=None):
    """The seam of "adaLN" or "adaRMSNorm", behind "gate+add+", of samples or "of rows"."""
    shape = case.shape if of_rows(case) else (case.shape[0], case.shape[-1])
    like = dict(device=device, dtype=dtype or case.dtype)
    modulation = {name: torch.randn(shape, **like) / 4 for name in ("scale", "shift", "gate")}
    residual = case.like_input(torch.randn, device, dtype) if adds(case) else None
    name = "ada_rms_norm" if "RMS" in case.layer else "ada_layer_norm"
    return Seam(name, like, residual, modulation)


def more_passes(case, direction):
    """residual and z; x, dresidual and the gradient of z. Of rows scale, shift, gate; not the shift's."""
    forward, backward, gates = direction != "backward", "backward" in direction, adds(case)
    of_modulation = (2 + gates) * forward + (2 + 2 * gates) * backward
    return gates * (2 * forward + 3 * backward) + of_rows(case) * of_modulation


X, ROW, SAMPLE = (2, 3, 4), (4,), (2, 4)
OPERATION = Operation(
    name="ada_norm",
    kernels="ada_norm",
    over="samples",
    formulas=FORMULAS,
    functions={
        "ada_layer_norm": Function(as_they_are, (X, ROW, ROW, ROW, ROW)),
        "ada_layer_norm of samples": Function(as_they_are, (X, SAMPLE, SAMPLE)),
        "ada_layer_norm of samples and a gated sum": Function(both, (X, X, SAMPLE, SAMPLE, ROW, ROW, SAMPLE)),
        "ada_layer_norm of rows and a gated sum": Function(both, (X, X, X, X, ROW, ROW, X)),
        "ada_rms_norm": Function(as_they_are, (X, ROW, ROW, ROW)),
        "ada_rms_norm of samples and a sum": Function(of_a_sum, (X, X, (2, 1, 4))),
        "ada_rms_norm of frames": Function(as_they_are, ((2, 2, 3, 4), (2, 2, 1, 4), SAMPLE, ROW)),
        "ada_rms_norm of rows": Function(as_they_are, (X, X, SAMPLE, ROW)),
    },
    layers={
        "AdaLayerNorm": Layer((4,), (3, 4), module=Modulated),
        "AdaLayerNorm, prenorm, with parameters": Layer(
            (4, 1e-6, True), (3, 4), dict(prenorm=True), Modulated
        ),
        "AdaRMSNorm": Layer((4, 1e-6, True), (3, 4), module=Modulated),
    },
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "2x129x768", "ada_layer_norm of samples and a gated sum"),
        Smoke("bf16 fp32", "3x40x64", "ada_layer_norm of rows and a gated sum"),
        Smoke("bf16", "1x300x1152", "ada_layer_norm of samples"),
        Smoke("bf16", "2x40x5120", "ada_rms_norm of rows"),
    ),
    measured=Measured(
        torch_layer=torch_layer,
        fuse=Seam.fuse,
        # x, y; dy, x, dx; both; x, y
        passes={"forward": 2, "backward": 3, "forward+backward": 5, "evaluation": 2},
        more_passes=more_passes,
        small="gate+add+adaLN fp32 2x5x40",
        ledger=each("4x1848x1152", *KINDS, "adaLN of rows {}") + ", gate+add+adaLN 1x2772x3072",
        static=each("4x1024x1152, 1x4096x64, 1x4096x8192", *KINDS)
        + ", "
        + KINDS[1].format("1x4096x3072")
        + ", gate+add+adaLN of rows 4x1024x1536, adaRMSNorm 4x1024x1536",
        instructions=each("4x264x1152, 1x264x3072, 2x8192x64", *KINDS)
        + ", gate+add+adaLN of rows 4x264x1152, adaRMSNorm 2x264x1536, gate+add+adaLN 1x264x5120",
        exactness=in_float_dtypes("adaLN 4x32x768")
        + ", adaLN of rows fp32 2x64x768, adaRMSNorm fp32 2x64x768",
        together=layer_norm.MEASURED.together,
        host="adaLN 2x4x768, gate+add+adaLN 2x4x768",
        speed={
            "diffusion transformers": each(TRANSFORMERS, *KINDS, "adaLN of rows {}"),
            "float32": each("fp32 2x4096x1152", *KINDS),
        },
    ),
)
