"""What `smoke` calls: every family of kernels at sizes that reach each kernel, beside the same in torch.

A case names its sizes; its tensors are drawn where they are needed. Without a GPU the interpreter takes the
cases that it can run in a moment, with fewer rows.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import normreg
from normreg import functional as N
from normreg.kernels import batch_norm, launch
from normreg.kernels import sync_batch_norm as ranks

from .operations.case import DTYPES

SEED = 7  # of torch's generator before each call, so that every call of a case draws the same mask
P = 0.25  # exact in 16 and in 32 bits
DROP = dict(p=P, training=True)
ON_A_GPU = not launch.INTERPRET
INTERPRETED_ELEMENTS, INTERPRETED_COLS = 2**17, 2**14  # of tensors and of rows, at most, in the interpreter


@dataclass
class Problem:
    inputs: list  # tensors that are differentiated
    ours: Callable  # of the inputs: y, or a tuple of results
    theirs: Callable  # the same in torch's operations, in whatever dtype the inputs have
    draws: bool = False  # ours takes a seed from torch's generator


@dataclass(frozen=True)
class Case:
    family: str
    dtype: str  # of DTYPES
    what: str
    interpreted: bool  # also where there is no GPU
    build: Callable  # of a Maker: the Problem

    def __str__(self):
        return f"{self.family} {self.dtype} {self.what}"

    def problem(self, device):
        torch.manual_seed(0)
        return self.build(Maker(device, DTYPES[self.dtype]))


@dataclass
class Maker:
    device: str
    dtype: torch.dtype

    def __call__(self, *shape):
        return torch.randn(shape, device=self.device, dtype=torch.float64).to(self.dtype)

    def image(self, shape, last):
        x = self(*shape)
        return x.to(memory_format=torch.channels_last) if last else x

    @staticmethod
    def keep(function, *arguments, **options):
        """The mask of the call that follows `torch.manual_seed(SEED)`."""
        torch.manual_seed(SEED)
        return normreg.dropout_mask(function, *arguments, **options)


def rows(cols):
    """Enough for several programs that share column sums; in the interpreter a few."""
    if not ON_A_GPU:
        return 3 if cols <= 1025 else 1
    return 257 if cols <= 1025 else 17


def layer_norm(make, cols):
    return Problem(
        [make(rows(cols), cols), make(cols), make(cols)],
        lambda x, w, b: N.layer_norm(x, (cols,), w, b),
        lambda x, w, b: F.layer_norm(x, (cols,), w, b),
    )


def rms_norm(make, cols):
    return Problem(
        [make(rows(cols), cols), make(cols)],
        lambda x, w: N.rms_norm(x, (cols,), w, 1e-6),
        lambda x, w: F.rms_norm(x, (cols,), w, 1e-6),
    )


def layer_norm_channels(make, *shape):
    def theirs(x, w, b):
        return F.layer_norm(x.movedim(1, -1), (x.shape[1],), w, b, 1e-6).movedim(-1, 1)

    return Problem([make(*shape), make(shape[1]), make(shape[1])], N.layer_norm_channels, theirs)


def _with_running(function, training, **options):
    """y and the running statistics afterwards; they begin anew with every call."""

    def call(x, w, b, *residual):
        mean, var = torch.full_like(w.detach(), 0.5), torch.full_like(w.detach(), 2.0)
        y = function(x, mean, var, w, b, training, *residual, **options)
        return y, mean, var

    return call


def batch_norm_alone(make, *shape, last=False, training=True):
    return Problem(
        [make.image(shape, last), make(shape[1]), make(shape[1])],
        _with_running(N.batch_norm, training),
        _with_running(F.batch_norm, training),
    )


def batch_norm_act(make, *shape, last=False, training=True, act="silu", residual=False):
    def ours(x, mean, var, w, b, training, *residual):
        return N.batch_norm_act(x, mean, var, w, b, training, act=act, residual=next(iter(residual), None))

    def theirs(x, mean, var, w, b, training, *residual):
        return getattr(F, act)(sum(residual, F.batch_norm(x, mean, var, w, b, training)))

    inputs = [make.image(shape, last), make(shape[1]), make(shape[1])]
    inputs += [make.image(shape, last)] * residual
    return Problem(inputs, _with_running(ours, training), _with_running(theirs, training))


class TwoRanks(torch.autograd.Function):
    """SyncBatchNorm of two ranks in one process, which exchange what they pack without a collective."""

    @staticmethod
    def forward(ctx, x, w, b):
        halves = [half.contiguous() for half in x.chunk(2)]
        gathered = torch.cat([ranks.pack(half, None) for half in halves])
        results = [
            ranks.normalize(half, gathered, w, b, None, None, None, 0.1, 1e-5, batch_norm.NOTHING)
            for half in halves
        ]
        _, *statistics = results[0]
        ctx.save_for_backward(*halves, w, b, *statistics)
        return torch.cat([y for y, *_ in results])

    @staticmethod
    def backward(ctx, dy):
        *halves, w, b, mean, var, count = ctx.saved_tensors
        dys = [half.contiguous() for half in dy.chunk(2)]
        packed, dweights, dbiases, _ = zip(
            *(
                ranks.backward_pack(
                    dy, x, w, b, mean, var, count, 1e-5, torch.promote_types(w.dtype, torch.float32),
                    (True, True, True, False), batch_norm.NOTHING,
                )
                for dy, x in zip(dys, halves)
            )
        )  # fmt: skip
        sums = sum(packed)
        dx = [
            ranks.backward(dy, x, w, b, mean, var, sums, None, 1e-5, batch_norm.NOTHING)
            for dy, x in zip(dys, halves)
        ]
        return torch.cat(dx), sum(dweights).to(w.dtype), sum(dbiases).to(b.dtype)


def sync_batch_norm(make, *shape):
    return Problem(
        [make(*shape), make(shape[1]), make(shape[1])],
        TwoRanks.apply,
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
    )


def group_norm(make, *shape, groups):
    return Problem(
        [make(*shape), make(shape[1]), make(shape[1])],
        lambda x, w, b: N.group_norm(x, groups, w, b),
        lambda x, w, b: F.group_norm(x, groups, w, b),
    )


def instance_norm(make, *shape):
    def with_running(function):
        def call(x, w, b):
            mean, var = torch.full_like(w.detach(), 0.5), torch.full_like(w.detach(), 2.0)
            return function(x, mean, var, w, b), mean, var

        return call

    inputs = [make(*shape), make(shape[1]), make(shape[1])]
    return Problem(inputs, with_running(N.instance_norm), with_running(F.instance_norm))


def dropped(x, keep):
    return torch.where(keep, x, 0) / (1 - P)


def dropout(make, *shape, function, last=False):
    x, call = make.image(shape, last), getattr(N, function)
    keep = make.keep(call, x, P, True)
    return Problem([x], lambda x: call(x, P, True), lambda x: dropped(x, keep), draws=True)


def alpha_dropout(make, *shape):
    x = make(*shape)
    keep = make.keep(N.alpha_dropout, x, P, True)
    low = -1.7580993408473766  # alpha times scale of SELU
    a = ((1 - P) * (1 + P * low**2)) ** -0.5

    def theirs(x):
        return a * torch.where(keep, x, low) - a * P * low

    return Problem([x], lambda x: N.alpha_dropout(x, P, True), theirs, draws=True)


def dropout_add(make, count, cols, scaled):
    x, residual = make(count, cols), make(count, cols)
    inputs, options = [x, residual], {}
    if scaled:
        inputs, options = [*inputs, make(cols)], dict(row_scale=make(count))

    def ours(x, residual, layer_scale=None):
        return N.dropout_add(x, residual, **DROP, layer_scale=layer_scale, **options)

    keep = make.keep(N.dropout_add, x, residual, **DROP, layer_scale=inputs[2] if scaled else None, **options)

    def theirs(x, residual, layer_scale=None):
        branch = dropped(x, keep)
        if layer_scale is not None:
            branch = branch * options["row_scale"].to(x.dtype)[:, None] * layer_scale
        return residual + branch

    return Problem(inputs, ours, theirs, draws=True)


def drop_path_add(make, *shape):
    x, residual = make(*shape), make(*shape)
    keep = make.keep(N.drop_path_add, x, residual, P, True)
    return Problem(
        [x, residual],
        lambda x, residual: N.drop_path_add(x, residual, P, True),
        lambda x, residual: residual + dropped(x, keep),
        draws=True,
    )


def dropout_add_norm(make, cols, p=P, norm="layer_norm", scaled=False):
    """y and z of `prenorm`; without a mask for p = 0."""
    count = rows(cols)
    x, residual, w = make(count, cols), make(count, cols), make(cols)
    inputs = [x, residual, w, *([make(cols)] if scaled else [])]
    call, options = getattr(N, f"dropout_add_{norm}"), dict(p=p, prenorm=True)

    def ours(x, residual, w, layer_scale=None):
        return call(x, residual, (cols,), w, **options, layer_scale=layer_scale)

    keep = None
    if p:
        scale = inputs[3] if scaled else None
        keep = make.keep(call, x, residual, (cols,), w, **options, layer_scale=scale)

    def theirs(x, residual, w, layer_scale=None):
        branch = x if keep is None else dropped(x, keep)
        z = residual + (branch if layer_scale is None else branch * layer_scale)
        eps = {} if norm == "layer_norm" else dict(eps=torch.finfo(torch.float32).eps)
        return getattr(F, norm)(z, (cols,), w, **eps), z

    if norm == "rms_norm":
        options["eps"] = torch.finfo(torch.float32).eps
    return Problem(inputs, ours, theirs, draws=p > 0)


def bias_act_dropout(make, count, cols, p=P, act="gelu", bias=True):
    x, b = make(count, cols), [make(cols)] * bias
    keep = make.keep(N.bias_act_dropout, x, *(b or [None]), act, p) if p else None

    def theirs(x, bias=None):
        y = getattr(F, act)(x if bias is None else x + bias)
        return y if keep is None else dropped(y, keep)

    def ours(x, bias=None):
        return N.bias_act_dropout(x, bias, act, p)

    return Problem([x, *b], ours, theirs, draws=p > 0)


def l2_penalty(make, *sizes):
    """Of tensors of every dtype that is not wider than the case's."""
    widest = torch.finfo(make.dtype).bits
    dtypes = itertools.cycle(d for d in DTYPES.values() if torch.finfo(d).bits <= widest)
    tensors = [make(size).to(dtype) for size, dtype in zip(sizes, dtypes)]
    wide = torch.promote_types(make.dtype, torch.float32)
    return Problem(
        tensors,
        lambda *w: normreg.l2_penalty(w, 0.02),
        lambda *w: 0.01 * sum(t.to(torch.promote_types(t.dtype, wide)).square().sum() for t in w),
    )


ALL, WIDE_TYPES, NARROW = ("bf16", "fp32", "fp16", "fp64"), ("bf16", "fp32", "fp64"), ("bf16", "fp32")
# A line: dtypes, what builds the problem, its sizes and options. Of a family what tells most comes first.
TABLE = {
    "layer_norm": [
        (ALL, layer_norm, (768,)),
        (WIDE_TYPES, layer_norm, (64,)),  # several rows a program
        (ALL, layer_norm, (1025,)),  # odd
        (("bf16", "fp16"), layer_norm, (5120,)),  # in parts
        (NARROW, layer_norm, (12288,)),  # in parts; float32 backward in two passes
        (("bf16",), layer_norm, (65536,)),  # in parts, packed
        (("bf16",), layer_norm, (131072,)),  # in two passes
        (("fp64",), layer_norm, (16392,)),
    ],
    "rms_norm": [
        (ALL, rms_norm, (768,)),
        (("bf16",), rms_norm, (5120,)),
        (("fp32",), rms_norm, (1025,)),
        (("bf16",), rms_norm, (131072,)),
    ],
    "layer_norm_channels": [
        (ALL, layer_norm_channels, (8, 96, 7, 9)),
        (("bf16",), layer_norm_channels, (2, 3000, 3, 3)),  # too many to be held
    ],
    "batch_norm": [
        (ALL, batch_norm_alone, (8, 6, 5, 5)),
        (("bf16", "fp16"), batch_norm_alone, (300, 129)),
        (NARROW, batch_norm_alone, (2, 64, 7, 7), dict(last=True)),
        (ALL, batch_norm_alone, (32, 64, 14, 14), dict(last=True)),  # split
        (("bf16", "fp64"), batch_norm_alone, (4, 3, 200, 201)),  # split
        (("bf16", "fp16"), batch_norm_alone, (8, 6, 5, 5), dict(training=False)),
        (("fp32",), batch_norm_alone, (4, 64, 14, 14), dict(last=True, training=False)),
    ],
    "batch_norm_act": [
        (ALL, batch_norm_act, (8, 6, 5, 5)),
        (("bf16",), batch_norm_act, (8, 6, 5, 5), dict(act="relu", residual=True)),
        (NARROW, batch_norm_act, (32, 64, 14, 14), dict(last=True, act="relu", residual=True)),
        (("bf16",), batch_norm_act, (4, 3, 200, 201), dict(act="gelu")),
        (("bf16",), batch_norm_act, (8, 6, 5, 5), dict(act="relu", training=False)),
    ],
    "sync_batch_norm": [(WIDE_TYPES, sync_batch_norm, (6, 40, 5, 5))],
    "group_norm": [
        (ALL, group_norm, (4, 64, 8, 8), dict(groups=8)),
        (("bf16",), group_norm, (33, 129), dict(groups=3)),
        (WIDE_TYPES, group_norm, (2, 32, 64, 64), dict(groups=2)),  # split
    ],
    "instance_norm": [
        (ALL, instance_norm, (8, 6, 5, 7)),
        (("bf16",), instance_norm, (2, 3, 200, 201)),  # split
    ],
    "dropout": [
        (ALL, dropout, (100, 1000), dict(function="dropout")),
        (("bf16",), dropout, (33, 129), dict(function="dropout")),
        (("bf16", "fp32"), dropout, (8, 40, 7, 7), dict(function="dropout2d")),
        (("bf16",), dropout, (8, 40, 8, 8), dict(function="dropout2d", last=True)),
        (("bf16",), dropout, (64, 100), dict(function="drop_path")),
        (("bf16", "fp64"), alpha_dropout, (100, 1000)),
    ],
    "dropout_add": [
        (ALL, dropout_add, (129, 768), dict(scaled=False)),
        (NARROW, dropout_add, (129, 768), dict(scaled=True)),
        (("bf16",), drop_path_add, (8, 40, 7, 7)),
    ],
    "dropout_add_norm": [
        (ALL, dropout_add_norm, (768,)),
        (NARROW, dropout_add_norm, (768,), dict(p=0.0)),
        (("bf16",), dropout_add_norm, (5120,)),  # in parts
        (("bf16",), dropout_add_norm, (1025,), dict(norm="rms_norm", scaled=True)),
        (("bf16",), dropout_add_norm, (131072,), dict(norm="rms_norm")),  # in two passes
    ],
    "bias_act_dropout": [
        (ALL, bias_act_dropout, (129, 768)),
        (NARROW, bias_act_dropout, (129, 768), dict(p=0.0)),
        (("bf16",), bias_act_dropout, (129, 1001), dict(act="silu", bias=False)),
    ],
    "l2_penalty": [(("bf16", "fp32", "fp64"), l2_penalty, (1000, 33333, 7, 70000))],
}


def _interpreted(build, sizes):
    if build in (layer_norm, rms_norm, dropout_add_norm):
        return sizes[0] <= INTERPRETED_COLS
    return build is l2_penalty or torch.Size(sizes).numel() <= INTERPRETED_ELEMENTS


def _case(family, dtype, build, sizes, options):
    words = [build.__name__] * (build.__name__ not in (family, f"{family}_alone"))
    words += ["x".join(map(str, sizes)), *(f"{name}={value}" for name, value in options.items())]
    interpreted = _interpreted(build, sizes)
    return Case(family, dtype, " ".join(words), interpreted, lambda make: build(make, *sizes, **options))


def cases(families=None):
    """bfloat16 of every family first, the families in turn."""
    found = []
    for family, lines in TABLE.items():
        for number, (dtypes, build, sizes, *options) in enumerate(lines):
            for dtype in dtypes:
                case = _case(family, dtype, build, sizes, *(options or [{}]))
                found.append((ALL.index(dtype) > 0, number, ALL.index(dtype), case))
    found = [case for *_, case in sorted(found, key=lambda entry: entry[:3])]
    if not ON_A_GPU:
        found = [case for case in found if case.interpreted]
    return [case for case in found if case.family in (families or TABLE)]
