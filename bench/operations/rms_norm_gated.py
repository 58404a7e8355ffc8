"""RMSNorm and a gate: behind the heads of linear attention, and before Mamba2's last projection."""

import torch
import torch.nn.functional as F

from normreg import functional

from . import layer_norm
from .case import each, in_float_dtypes
from .composed import Composed, Gated
from .operation import Function, Layer, Measured, Operation, Smoke

GATES = {"silu": F.silu, "sigmoid": torch.sigmoid}
HEADS, MAMBA2 = "RMSNorm+silu {}", "silu+RMSNorm {}"


def rms_norm_gated(
    x, gate, weight=None, bias=None, eps=1e-5, *, group_size=None, norm_before_gate=True, act="silu"
):
    activation = GATES[act]
    a = 1.0 if gate is None else activation(gate)
    u = (x if norm_before_gate else x * a).unflatten(-1, (-1, group_size or x.shape[-1]))
    y = F.rms_norm(u, u.shape[-1:], eps=eps).flatten(-2)
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return y * a if norm_before_gate else y


def in_wider(x, gate, *parameters, **options):
    """The formula of 16 bits as published layers have it, in float32 and rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = rms_norm_gated(*(t if t is None else t.to(wide) for t in (x, gate, *parameters)), **options)
    return y.to(x.dtype)


def torch_layer(case, device=None, dtype=None):
    """The layer of "RMSNorm+silu", "RMSNorm+sigmoid" or, in groups of 1024, "silu+RMSNorm/1024"."""
    parts, _, group_size = case.layer.partition("/")
    first, second = parts.split("+")
    tensors = {
        "gate": case.like_input(torch.randn, device, dtype),
        "weight": torch.randn(case.shape[-1], device=device, dtype=dtype),
    }
    options = dict(norm_before_gate=first == "RMSNorm", act=second if first == "RMSNorm" else first)
    options["group_size"] = int(group_size) if group_size else None
    return Composed(in_wider, functional.rms_norm_gated, tensors, **options)


def in_order(**options):
    return lambda f, x, gate, *parameters, **more: f(x, gate, *parameters, **options, **more)


OPERATION = Operation(
    name="rms_norm_gated",
    kernels="gated_norm",
    over="rows",
    kept=lambda x, training: 4 * x.shape[0],
    formulas={"rms_norm_gated": in_wider},
    functions={
        "rms_norm_gated": Function(in_order(), ((4, 6), (4, 6), (6,), (6,))),
        "rms_norm_gated without parameters, by sigmoid": Function(in_order(act="sigmoid"), ((3, 5), (3, 5))),
        "rms_norm_gated behind the gate, in groups": Function(
            in_order(norm_before_gate=False, group_size=3), ((4, 6), (4, 6), (6,), (6,))
        ),
        "rms_norm_gated of weight, behind the gate": Function(
            in_order(norm_before_gate=False), ((2, 5), (2, 5), (5,))
        ),
    },
    layers={
        "RMSNormGated": Layer((6,), (6,), module=Gated),
        "RMSNormGated in groups, behind the gate": Layer(
            (6,), (2, 6), dict(group_size=2, norm_before_gate=False), Gated
        ),
    },
    smoke=(
        Smoke("bf16 fp32 fp16 fp64", "128"),
        Smoke("bf16 fp32", "4096", "rms_norm_gated of weight, behind the gate"),
        Smoke("bf16 fp64", "1026", "rms_norm_gated behind the gate, in groups"),
    ),
    measured=Measured(
        torch_layer=torch_layer,
        fuse=Composed.fuse,
        # x, gate, y; dy, x, gate, dx, dgate; both
        passes={"forward": 3, "backward": 5, "forward+backward": 8, "evaluation": 3},
        small="RMSNorm+silu fp32 40x64",
        ledger="RMSNorm+silu 67584x128, silu+RMSNorm 2112x4096, silu+RMSNorm/1024 1056x8192",
        static="RMSNorm+silu 65536x128, RMSNorm+silu 65536x256, silu+RMSNorm/1024 2048x8192, "
        "silu+RMSNorm 4096x2048, silu+RMSNorm 4096x4096, silu+RMSNorm 4096x8192, RMSNorm+sigmoid 4096x4096",
        instructions="RMSNorm+silu 8192x128, silu+RMSNorm 264x4096, silu+RMSNorm/1024 132x8192, "
        "RMSNorm+sigmoid fp32 4096x256, silu+RMSNorm 132x8192",
        exactness=in_float_dtypes("RMSNorm+silu 1024x128, silu+RMSNorm 32x4096"),
        together=layer_norm.MEASURED.together,
        host="RMSNorm+silu 64x128",
        speed={
            # Qwen3-Next, Kimi Linear: heads of 128; Mamba2 of 130 M to 2.7 G parameters, and in groups
            "linear attention": each("524288x128, 262144x256", HEADS) + ", RMSNorm+sigmoid 524288x128",
            "Mamba2": each("16384x1536, 16384x2048, 16384x4096, 16384x5120, 8192x8192", MAMBA2)
            + ", silu+RMSNorm/1024 8192x8192",
            "float32": each("fp32 16384x4096", MAMBA2),
        },
    ),
)
