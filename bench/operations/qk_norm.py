"""Norms of the heads of queries and keys: attention layers of language and diffusion models."""

import torch
import torch.nn.functional as F

from normreg import functional

from .case import each, in_float_dtypes
from .composed import Both
from .operation import Function, Layer, Measured, Operation, Smoke

BY_LAYER_NORM, ROTARY = "QKNorm(layer_norm)", "QKNorm(rotary)"
INTERLEAVED, HALF_TURNED = "QKNorm(rotary/interleaved)", "QKNorm(rotary/half)"
OTHER_DTYPES = "2x4096x32x128, 8x1024x24x64"


def turned(x, cos, sin, interleaved=False):
    """x whose first columns are turned by rotary embedding, in torch's operations."""
    first, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    if interleaved:
        across = torch.stack((-first[..., 1::2], first[..., ::2]), -1).flatten(-2)
    else:
        a, b = first.chunk(2, -1)
        across = torch.cat((-b, a), -1)
    return torch.cat(((first * cos + across * sin).to(x.dtype), rest), -1)


def angles(x, part=1):
    """cos and sin of the positions of a (B, T, H, D) tensor, no two alike, of D // part of its columns."""
    _, tokens, _, cols = x.shape
    cols //= part
    angle = torch.arange(tokens * cols, dtype=torch.float64, device=x.device).view(tokens, 1, cols)
    return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


def formula(
    q,
    k,
    q_weight=None,
    k_weight=None,
    eps=None,
    q_bias=None,
    k_bias=None,
    norm="rms_norm",
    rotary=None,
    interleaved=False,
):
    found = []
    for x, weight, bias in ((q, q_weight, q_bias), (k, k_weight, k_bias)):
        if norm == "rms_norm":
            found.append(F.rms_norm(x, x.shape[-1:], weight, eps))
        else:
            found.append(F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5 if eps is None else eps))
    return tuple(found if rotary is None else (turned(x, *rotary, interleaved) for x in found))


class Heads(torch.nn.Module):
    """What torch has to offer: queries x and as many keys, each with a norm; both have a gradient."""

    def __init__(self, norm, keys, rotary, **options):
        super().__init__()
        self.interleaved = rotary == INTERLEAVED
        found = angles(keys, 2 if rotary == HALF_TURNED else 1) if rotary else (None, None)
        for name, values in zip(("cos", "sin"), found):
            self.register_buffer(name, values)
        self.q_norm, self.k_norm = (norm(keys.shape[-1], **options) for _ in "qk")
        self.keys = torch.nn.ParameterDict(dict(x=keys))

    def forward(self, x):
        q, k = self.q_norm(x), self.k_norm(self.keys["x"])
        if self.cos is not None:
            q, k = (turned(t, self.cos, self.sin, self.interleaved) for t in (q, k))
        return Both.apply(q, k)

    def fuse(self):
        self.__class__ = FusedHeads
        return self


class FusedHeads(Heads):
    def forward(self, x):
        (q_weight, *q_bias), (k_weight, *k_bias) = (n.parameters() for n in (self.q_norm, self.k_norm))
        options = dict(q_bias=q_bias[0], k_bias=k_bias[0], norm="layer_norm") if q_bias else {}
        if self.cos is not None:
            options |= dict(rotary=(self.cos, self.sin), interleaved=self.interleaved)
        keys, eps = self.keys["x"], self.q_norm.eps
        return Both.apply(*functional.qk_norm(x, keys, q_weight, k_weight, eps, **options))


def torch_layer(case, **options):
    norm = torch.nn.LayerNorm if case.layer == BY_LAYER_NORM else torch.nn.RMSNorm
    keys = case.like_input(torch.randn, options.get("device"), options.get("dtype"))
    rotary = case.layer if case.layer in (ROTARY, INTERLEAVED, HALF_TURNED) else ""
    return Heads(norm, keys, rotary, **options)


def added(f, q, k, *parameters, **options):
    """q + k * 2 of both results, so that one incoming gradient reaches both."""
    q, k = f(q, k, *parameters, **options)
    return q + k * 2


def layer_norms(f, q, k, q_weight=None, k_weight=None, q_bias=None, k_bias=None):
    biases = dict(q_bias=q_bias, k_bias=k_bias)
    return added(f, q, k, q_weight, k_weight, norm="layer_norm", **biases)


def with_rotary(f, q, k, *weights):
    return added(f, q, k, *weights, rotary=angles(q))


def with_neighbours_turned(f, q, k, *weights):
    return added(f, q, k, *weights, rotary=angles(q, 2), interleaved=True)


def of_keys(f, q, k, k_weight):
    """Without a weight of queries, whose result is not used."""
    return f(q, k, None, k_weight)[1] + q.mean()


class OfOne(torch.nn.Module):
    """Queries and keys are one tensor."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        both = self.layer(x, x)
        return both[0] + both[1] * 2


HEADS = (2, 3, 2, 4), (2, 3, 2, 4)
OPERATION = Operation(
    name="qk_norm",
    kernels="qk_norm",
    formulas={"qk_norm": formula},
    # of queries and of keys
    kept=lambda x, training: 2 * 4 * x.shape[:-1].numel(),
    functions={
        "qk_norm": Function(added, (*HEADS, (4,), (4,))),
        "qk_norm without weights": Function(added, HEADS),
        "qk_norm with rotary": Function(with_rotary, (*HEADS, (4,), (4,))),
        "qk_norm with rotary of neighbours, in part": Function(with_neighbours_turned, (*HEADS, (4,), (4,))),
        "qk_norm of keys": Function(of_keys, (*HEADS, (4,))),
        "qk_norm by layer_norm": Function(layer_norms, (*HEADS, (4,), (4,), (4,), (4,))),
    },
    layers={
        "QKNorm": Layer((4,), (3, 2, 4), module=OfOne),
        "QKNorm of LayerNorms": Layer((4,), (2, 4), dict(norm="layer_norm", bias=True), OfOne),
    },
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "2x33x5x128"),
        Smoke("bf16", "2x33x5x100"),
        Smoke("bf16 fp32", "2x33x5x64", "qk_norm by layer_norm"),
    ),
    measured=Measured(
        torch_layer=torch_layer,
        fuse=Heads.fuse,
        # q, k and both results; their gradients, q, k and theirs; all; as the first
        passes={"forward": 4, "backward": 6, "forward+backward": 10, "evaluation": 4},
        small="fp32 2x5x3x40",
        ledger=f"4x528x32x128, {BY_LAYER_NORM} 4x528x64x64, 4x264x32x256, {ROTARY} 4x528x32x128, "
        f"{INTERLEAVED} 4x528x32x128, {HALF_TURNED} 4x528x32x128",
        static=f"2x4096x32x128, 2x4096x32x64, 2x4096x16x256, {BY_LAYER_NORM} 2x4096x32x128, 2x4096x24x80, "
        f"{ROTARY} 2x4096x32x128, {ROTARY} 2x4096x32x64, {ROTARY} 2x4096x16x256, "
        f"{INTERLEAVED} 2x4096x24x128, {HALF_TURNED} 2x4096x16x256",
        instructions=f"2x132x32x128, 2x132x32x64, 2x66x32x256, {BY_LAYER_NORM} 2x132x32x64, 2x132x32x80, "
        f"{ROTARY} 2x132x32x128, {ROTARY} 2x132x32x64, {INTERLEAVED} 2x132x32x128, "
        f"{HALF_TURNED} 2x132x32x128",
        exactness=in_float_dtypes(f"{BY_LAYER_NORM} 2x64x16x64")
        + f", fp32 2x64x8x128, {ROTARY} fp32 2x64x8x128",
        together=lambda t, case: t.flatten(0, -2),
        host="1x8x8x128",
        speed={
            # Qwen3, Gemma 3; Flux, SD 3.5, ViT-22B
            "language": "4x4096x32x128, 1x32768x16x128, 2x4096x8x256",
            "vision": f"4x4608x24x128, 8x4250x24x64, {BY_LAYER_NORM} 32x256x48x128",
            "float32": each(OTHER_DTYPES, "fp32 {}"),
            "float16": each(OTHER_DTYPES, "fp16 {}"),
        },
    ),
)
