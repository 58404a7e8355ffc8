"""Bias, activation and dropout: between the two linear layers of a transformer's block."""

import torch
import torch.nn.functional as F

from normreg import functional

from .calls import ACTIVATIONS
from .case import each, error_against_float64
from .composed import Composed
from .operation import Function, Layer, Measured, Operation, Smoke

P = 0.1


def bias_act_dropout(x, bias=None, act="gelu", p=0.5, training=True, *, drop=F.dropout):
    return drop(ACTIVATIONS[act](x if bias is None else x + bias), p, training)


def torch_layer(case, device=None, dtype=None):
    bias = torch.randn(case.shape[-1], device=device, dtype=dtype)
    act = case.layer.split("+")[1]
    return Composed(bias_act_dropout, functional.bias_act_dropout, {"bias": bias}, act=act, p=P)


def error(reference, layer, x, dy, y, gradients):
    """The largest relative error under the layer's own mask, or inf where that is no such mask."""
    keep = (y != 0) | (gradients[0] != 0)  # act(0) is 0
    zeros = 0.0 if layer.options["act"] != "relu" else (x + layer.bias <= 0).double().mean().item()
    kept = (1 - P) * (1 - zeros)
    if abs(keep.double().mean().item() - kept) > 6 * (P * (1 - P) / x.numel()) ** 0.5 + 2**-8:
        return float("inf")
    return error_against_float64(reference.dropping(keep), layer, x, dy, y, gradients)


def without_bias(f, x, act="silu", p=0.4, **options):
    return f(x, act=act, p=p, **options)


OPERATION = Operation(
    name="bias_act_dropout",
    kernels="bias_act",
    over="rows",
    random=True,
    formulas={"bias_act_dropout": bias_act_dropout},
    functions={
        "bias_act_dropout": Function(
            lambda f, x, bias, p=0.4, **options: f(x, bias, "gelu", p, **options), ((2, 3), (3,))
        ),
        "bias_act_dropout without bias": Function(without_bias, ((2, 3),)),
    },
    layers={"BiasActDropout": Layer((4,), (3, 4), dict(p=0.4))},
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "129x768"),
        Smoke("bf16 fp32", "129x768", options=dict(p=0.0)),
        Smoke("bf16", "129x1001", "bias_act_dropout without bias"),
    ),
    measured=Measured(
        torch_layer=torch_layer,
        fuse=Composed.fuse,
        passes={"forward": 2, "backward": 3, "forward+backward": 5},  # x, y; dy, x, dx; both
        masked_error=error,
        small="bias+gelu+dropout fp32 64x128",
        ledger="bias+gelu+dropout 2112x4096, bias+gelu+dropout 264x4096",
        static="bias+gelu+dropout 4096x4096, bias+silu+dropout 4096x3072, bias+relu+dropout 4096x1000",
        instructions="bias+gelu+dropout 264x4096, bias+silu+dropout 352x3072, bias+relu+dropout 1056x1000",
        host="bias+gelu+dropout 8x768",
        speed={
            "language": each(
                "16384x3072, 16384x16384, 8192x11008", "bias+gelu+dropout {}", "bias+silu+dropout {}"
            )
        },
    ),
)
