"""What `smoke` computes: each family of kernels, and the same in torch's operations.

A function for each: of a Maker, which draws its tensors, sizes and options, it makes the Problem.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import normreg
from bench.operations.case import DTYPES
from normreg import functional as N
from normreg.kernels import batch_norm, launch
from normreg.kernels.batch_norm import synchronized as ranks

SEED = 7  # of torch's generator before each call, so that every call of a case draws the same mask
P = 0.25  # exact in 16 and in 32 bits
DROP = dict(p=P, training=True)
ON_A_GPU = not launch.INTERPRET


@dataclass
class Problem:
    inputs: list  # tensors that are differentiated
    ours: Callable  # of the inputs: y, or a tuple of results
    theirs: Callable  # the same in torch's operations, in whatever dtype the inputs have
    draws: bool = False  # ours takes a seed from torch's generator


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
    """Of tensors of every dtype not wider than the case's; float64 alone, because others sum in float32."""
    mixed = [d for d in DTYPES.values() if torch.finfo(d).bits <= torch.finfo(make.dtype).bits]
    dtypes = itertools.cycle([torch.float64] if make.dtype == torch.float64 else mixed)
    tensors = [make(size).to(dtype) for size, dtype in zip(sizes, dtypes)]
    wide = torch.promote_types(make.dtype, torch.float32)
    return Problem(
        tensors,
        lambda *w: normreg.l2_penalty(w, 0.02),
        lambda *w: 0.01 * sum(t.to(torch.promote_types(t.dtype, wide)).square().sum() for t in w),
    )
